"""What any feature may use; no domain word lives here."""
