# Every target prepares what it needs: .host/ gets a virtual environment, torch and a ComfyUI the first time.
HOST := python3 tools/host.py

.PHONY: demo test test-hosts lint browser format bench bench-quality serve workflows pictures

demo: ## merge, compose and train through a real server, and show the pictures
	$(HOST) tools/demo.py

test: lint browser ## lint, types, and every test
	$(HOST) -m pytest $(ARGS)

test-hosts: ## every test on every ComfyUI version supported; an hour
	python3 tools/hosts.py $(ARGS)

lint:
	$(HOST) -m ruff check .
	$(HOST) -m ruff format --check .
	$(HOST) -m basedpyright
	$(HOST) -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-logo --no-cache

browser: ## find a browser for the tests of the page, or install one
	$(HOST) tools/browser.py

format:
	$(HOST) -m ruff check --fix .
	$(HOST) -m ruff format .

bench: ## speed and memory, ending with one RESULT line
	$(HOST) bench $(ARGS)

bench-quality: ## score every method on the shapes world; goes on where it was stopped
	$(HOST) bench quality $(ARGS)

serve: ## ComfyUI with this pack and the demo models, in the browser
	$(HOST) tools/serve.py $(ARGS)

workflows: ## write example_workflows/ again after a node has changed
	$(HOST) tools/workflows.py

pictures: ## make README's, the help pages' and the templates' pictures anew, by the tests of the page
	$(HOST) -m pytest -n 0 tests/page --pictures
	$(HOST) tools/pictures.py
