// Included before every host source. glibc 2.27 and 2.29 gave these functions a new version that sets no errno through a wrapper; the
// first version computes the same and keeps the library loadable from glibc 2.17 on. glibc.cc does the same for what the static
// libstdc++ asks for.
#pragma once
#if defined(__linux__) && defined(__x86_64__)
#define HEED_OLD_SYMBOL(name) __asm__(".symver " #name "," #name "@GLIBC_2.2.5")
HEED_OLD_SYMBOL(exp);
HEED_OLD_SYMBOL(expf);
HEED_OLD_SYMBOL(exp2);
HEED_OLD_SYMBOL(exp2f);
HEED_OLD_SYMBOL(log);
HEED_OLD_SYMBOL(logf);
HEED_OLD_SYMBOL(log2);
HEED_OLD_SYMBOL(log2f);
HEED_OLD_SYMBOL(pow);
HEED_OLD_SYMBOL(powf);
#undef HEED_OLD_SYMBOL
#endif
