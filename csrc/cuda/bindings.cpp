// varsr_engine._C: a function an op's kernel, on raw pointers. The only file that knows of Python, and not of torch.
// Calls set the device, launch, and raise RuntimeError with the op's name and the cause where that fails.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "launchers.h"

namespace varsr {

bool programmatic_launches = false;

namespace {

void check(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report this one
  throw std::runtime_error(std::string(op) + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

// The tensors' device as the current one, and the one before behind it.
class OnDevice {
 public:
  OnDevice(int device, const char* op) {
    check(cudaGetDevice(&before_), op);
    if (device != before_) check(cudaSetDevice(device), op);
    changed_ = device != before_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Pointers and streams come from Python as integers, 0 for none.
template <class T>
using FromPython = std::conditional_t<std::is_pointer_v<T>, std::uintptr_t, T>;

template <class T>
T to_launcher(FromPython<T> value) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(value);
  } else {
    return value;
  }
}

template <class... A>
void define(pybind11::module_& module, const char* op, cudaError_t (*launcher)(A...)) {
  module.def(op, [op, launcher](int device, FromPython<A>... arguments) {
    const OnDevice on_device(device, op);
    check(launcher(to_launcher<A>(arguments)...), op);
  });
}

}  // namespace
}  // namespace varsr

PYBIND11_MODULE(_C, module) {
  using namespace varsr;
  module.doc() = "CUDA kernels: device index, launcher's arguments (csrc/cuda/launchers.h), stream.";
  define(module, "adaln", adaln);
  define(module, "qkv_norm_rope_cache", qkv_norm_rope_cache);
  define(module, "guidance", guidance);
  define(module, "bias_argmax", bias_argmax);
  define(module, "philox_normal", philox_normal);
  define(module, "refiner_update", refiner_update);
  define(module, "group_moments", group_moments);
  define(module, "group_normalise", group_normalise);
  define(module, "handoff_accumulate", handoff_accumulate);
  define(module, "handoff_pool_embed", handoff_pool_embed);
  define(module, "scale_attention", scale_attention);
  define(module, "scale_attention_sm90", scale_attention_sm90);
  define(module, "product_sm90", product_sm90);
  define(module, "product_gated_residual_sm90", product_gated_residual_sm90);
  define(module, "product_qkv_sm90", product_qkv_sm90);
  define(module, "product_argmax_sm90", product_argmax_sm90);
  module.def("use_programmatic_launches", [](bool enabled) { programmatic_launches = enabled; });
  module.def("runtime_version", [] {
    int version = 0;
    check(cudaRuntimeGetVersion(&version), "runtime_version");
    return version;
  });
#ifdef VARSR_CUDA_ARCHITECTURES
  module.attr("architectures") = VARSR_CUDA_ARCHITECTURES;
#else
  module.attr("architectures") = "";
#endif
}
