"""The data cache: values, what is on Redis, and the public interface."""
