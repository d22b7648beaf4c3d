"""What the commands of `varsr` do, one module a command. Nothing here imports torch before it is needed."""
