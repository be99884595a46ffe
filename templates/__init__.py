"""Templates rendered by codexctl; a person may override each."""
