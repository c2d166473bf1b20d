"""Every prompt template: a sample becomes a conversation or a pretraining document."""
