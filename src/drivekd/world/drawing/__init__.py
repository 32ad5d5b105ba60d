"""Pictures of the world: cameras, shapes, scenery, weather."""
