"""Who answers, and the answers that are kept."""
