"""What observers make of events: metrics, spans, and what each costs."""
