"""Teachers' targets: computed once, kept in memory or on disk."""
