// Package dep is what only the examples need.
package dep

// Name is a name.
const Name = "dep"
