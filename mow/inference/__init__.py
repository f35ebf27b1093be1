"""A trained agent outside of training: acting, imagining, exporting."""
