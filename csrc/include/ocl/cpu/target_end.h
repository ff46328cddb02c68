// Closes the region that target_begin.h opened.
#if !defined(__clang__)
#pragma GCC pop_options
#elif defined(OCL_TARGET_AVX512) || defined(OCL_TARGET_AVX2)
#pragma clang attribute pop
#endif
