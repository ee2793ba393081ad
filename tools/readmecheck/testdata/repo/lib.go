// Package lib is what the READMEs in the tests of readmecheck are about.
package lib

// Double returns twice n.
func Double(n int) int { return 2 * n }
