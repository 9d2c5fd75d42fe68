# The same commands for people and CI. Nothing must be installed before: see scripts/uv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

UV := scripts/uv
RUN := $(UV) run --no-sync
BURST ?=
PYTEST_ARGS ?=
SEEDS ?= 20000
KILLS ?= 200
SEED ?=
PROCESSES ?= 2
QUEUE ?= postgresql
DEPLOYERS ?= 1

.PHONY: help sync demo test check format-check lint types contracts fmt unit bench-burst bench-webhook bench-claim bench-scale bench-imports interleavings docs github-description clean model simulate simulate-bugs simulate-crashes chaos

help: ## Print these targets
	@printf 'Prevue: a running preview on Kubernetes for every GitHub pull request.\n\n'
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

sync: ## Install the locked dependencies into .venv
	@$(UV) sync --locked --quiet

demo: sync ## Comment /preview on a local pull request and watch it become a URL; BURST=50, QUEUE=redis|cloudtasks|pubsub, DEPLOYERS=2
	@$(RUN) python -m prevue.local.demo --queue $(QUEUE) --deployers $(DEPLOYERS) $(if $(BURST),--burst $(BURST))

test: check ## Everything: the checks, then all tests, on a real PostgreSQL and a real Kubernetes
	@$(RUN) pytest $(PYTEST_ARGS)

unit: sync ## The tests without PostgreSQL, cluster and browser: seconds
	@$(RUN) pytest -m "not postgres and not emulator and not cluster and not browser and not model" $(PYTEST_ARGS)

check: format-check lint types contracts ## Format, lint, types and import contracts

format-check: sync
	@$(RUN) ruff format --check .

lint: sync
	@$(RUN) ruff check .

types: sync
	@$(RUN) mypy

contracts: sync
	@$(RUN) lint-imports

fmt: sync ## Format the code and mend what ruff can mend
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

docs: sync ## Write the generated pages again: docs/configuration.md, docs/cli.md
	@$(RUN) python scripts/write_docs.py

bench-burst: sync ## 50 previews at once beside 50 raw `helm install --wait`
	@$(RUN) python bench/burst.py

bench-webhook: sync ## Webhooks a second, beside Probot and beside a bare floor
	@$(RUN) python bench/webhook.py

bench-claim: sync ## A claim after 1,000 and after 1,000,000 past requests, beside a bare UPDATE
	@$(RUN) python bench/claim.py

interleavings: sync ## Every interleaving of two transactions of the statestore (make test: those with one forced stop)
	@INTERLEAVINGS=all $(RUN) pytest tests/integration/test_postgres_interleavings.py -s

bench-scale: sync ## 50 requests of 10 s on 1, 2 and 4 deployers: the speed-up; QUEUE=redis|cloudtasks|pubsub
	@$(RUN) python bench/scale.py --queue $(QUEUE)

bench-imports: sync ## What each queue costs the App to import: time and memory
	@$(RUN) python bench/imports.py

github-description: sync ## Fetch GitHub's published description again and prune it to the paths that Prevue calls
	@cd tools/github-description && npm install --no-package-lock --ignore-scripts
	@$(RUN) python tools/github-description/prune.py

clean: ## Remove what the commands above made in this folder (not the shared cache of built programs)
	@rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist bench/results
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

model: sync ## The claim protocol in every interleaving of small worlds: minutes; writes the tables of docs/protocol/protocol.md
	@$(RUN) python docs/protocol/protocol_model.py --write

simulate: sync ## SEEDS=20000 simulated worlds on 2 processes: violations, faults by kind, the command that replays each failure
	@$(RUN) python -m tests.simulation --processes $(PROCESSES) run --seeds $(SEEDS)

simulate-bugs: sync ## Look for every planted bug; writes the table of docs/simulation.md
	@$(RUN) python -m tests.simulation --processes $(PROCESSES) bugs

simulate-crashes: sync ## Kill App and deployer at every await of the happy path, then at every second one, too
	@$(RUN) python -m tests.simulation --processes $(PROCESSES) crashes --double

chaos: sync ## KILLS=200 real processes killed under load, on QUEUE=postgresql|redis|cloudtasks|pubsub, PostgreSQL, Helm and cluster; then an independent check. SEED=… repeats the draws
	@$(RUN) python -m tests.chaos --queue $(QUEUE) --kills $(KILLS) $(if $(SEED),--seed $(SEED))
