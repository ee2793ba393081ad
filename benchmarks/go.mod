module github.com/llmrate/llmrate/benchmarks

go 1.26.0

require (
	github.com/llmrate/llmrate v0.0.0
	golang.org/x/sync v0.24.0
	golang.org/x/time v0.16.0
)

require (
	github.com/KimMachineGun/automemlimit v1.0.1 // indirect
	github.com/pbnjay/memory v0.0.0-20210728143218-7b4eea64cf58 // indirect
)

replace github.com/llmrate/llmrate => ../
