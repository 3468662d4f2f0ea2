"""Who may call a server, what each may do, and what protects it from the rest."""
