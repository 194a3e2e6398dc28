"""What the gateway keeps: accounts, counts. Only here it speaks SQL."""
