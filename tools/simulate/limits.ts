/** Most sequences at once. */
export const MAX_SEQUENCES = 512;
/** Most tokens of a step: one of each sequence that answers, and the rest for prompts (Agrawal et al. 2023, arXiv:2308.16369). */
export const MAX_STEP_TOKENS = 1024;
