"Compile quickly rather than well, which suits what runs for moments; `.ci/check` sets the same."

COMPILE_FAST = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
)
