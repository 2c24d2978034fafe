"""Approvals by email, on durable promises."""
