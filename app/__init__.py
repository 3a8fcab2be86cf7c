"""The gateway: everything that decides, records and touches PostgreSQL. It computes nothing on tensors."""
