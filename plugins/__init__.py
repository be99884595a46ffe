"""First-party provider plugins; each uses only what a third party can."""
