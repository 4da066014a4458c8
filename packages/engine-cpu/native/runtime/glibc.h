// Included before every runtime source. glibc 2.34 moved the thread functions into libc under a new version; binding to the first
// version keeps the library loadable from glibc 2.17 on. Their behaviour did not change.
#pragma once
#if defined(__linux__) && defined(__x86_64__)
#define HEED_OLD_SYMBOL(name) __asm__(".symver " #name "," #name "@GLIBC_2.2.5")
HEED_OLD_SYMBOL(pthread_create);
HEED_OLD_SYMBOL(pthread_detach);
HEED_OLD_SYMBOL(pthread_key_create);
HEED_OLD_SYMBOL(pthread_mutex_trylock);
HEED_OLD_SYMBOL(pthread_once);
HEED_OLD_SYMBOL(pthread_setspecific);
#undef HEED_OLD_SYMBOL
#endif
