# The commands of this repository. CI calls these too (.ci/run).

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -o pipefail -c

# The root module and the modules nested in it.
MODULES := . $(patsubst %/go.mod,%,$(wildcard */go.mod))

# The nested modules find the library by the replace lines of their go.mod, not by a workspace.
export GOWORK := off

FUZZTIME ?= 20s
BENCH ?= .
BENCHTIME ?= 1s

.PHONY: help demo test bench lint readme fuzz mutants fmt FORCE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .bin/demo ## Watch it work: real calls to a local server that enforces limits (needs no key)
	@cd examples && ../.bin/demo

test: .bin/runtests ## Run all tests, with the race detector, and say what was left out (FLAGS=-run=TestName)
	@.bin/runtests -flags "$(FLAGS)" $(MODULES)

bench: ## Measure it beside what one would compose by hand, name the machine (BENCH=regexp BENCHTIME=1s)
	@cd benchmarks && go run ./cmd/report -bench '$(BENCH)' -benchtime $(BENCHTIME)

lint: .bin/staticcheck ## Check formatting, vet, go fix and staticcheck in every module
	@failed=; \
	unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "not formatted (make fmt):"; echo "$$unformatted"; failed=1; fi; \
	for module in $(MODULES); do \
		echo "lint $$module"; \
		(cd $$module && go vet ./...) || failed=1; \
		(cd $$module && go fix -diff ./...) || { echo "go fix has a newer way to write this (make fmt)"; failed=1; }; \
		(cd $$module && $(CURDIR)/.bin/staticcheck ./...) || failed=1; \
	done; \
	[ -z "$$failed" ]

readme: .bin/readmecheck ## Check that every block of README.md and CONTRIBUTING.md runs
	@.bin/readmecheck README.md CONTRIBUTING.md

fuzz: ## Run each fuzz target for FUZZTIME (default 20s)
	@targets=$$(go test -list '^Fuzz' ./... | \
		awk '/^Fuzz/ { name[++n] = $$1 } /^ok/ { for (i = 1; i <= n; i++) print $$2, name[i]; n = 0 }') || exit 1; \
	[ -n "$$targets" ] || { echo "no fuzz targets"; exit 1; }; \
	while read -r package target; do \
		echo "fuzz $$target for $(FUZZTIME)"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" </dev/null || exit 1; \
	done <<<"$$targets"

mutants: .bin/mutants ## Break the code in the places of tools/mutants/mutants.txt; a test must fail each time (NAME=name)
	@.bin/mutants tools/mutants/mutants.txt $(NAME)

fmt: ## Format, modernise with go fix and tidy every module
	@gofmt -w .
	@for module in $(MODULES); do (cd $$module && go fix ./... && go mod tidy) || exit 1; done

# Nobody measures the demo's speed, and without inlining it compiles in two thirds of the time where nothing is built yet.
.bin/demo: FORCE
	@echo "compiling the demo; the first time takes half a minute"
	@go -C examples build -gcflags=all=-l -o ../.bin/ ./demo

# Programs from tools/. The go command knows whether there is anything to build.
.bin/staticcheck: FORCE
	@go -C tools build -o ../.bin/ honnef.co/go/tools/cmd/staticcheck

.bin/%: FORCE
	@go -C tools build -o ../.bin/ ./$*
