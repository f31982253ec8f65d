"""Records as documents of facts, sheets and sentences, before it is decided how they are drawn."""
