// Package benchmarks compares llmrate with what its users would compose by hand, side by side in one run.
//
//	go run ./cmd/report                  # the table: machine, ratios, targets
//	go test -run '^$' -bench . -benchmem # the same as Go benchmarks, for benchstat and profiles
//
// The contestants and the measurements live here, the table in cmd/report. Each measurement checks its own premise and
// fails if it does not hold: that every limit is configured, charged and enforced, that nobody was refused or had to
// wait where nobody should, that whoever should wait did, and in order.
package benchmarks
