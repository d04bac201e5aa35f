# What one does with a checkout. `make` alone lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help

PREFIX  ?= /usr/local
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system

# cargo may be installed and its directory not on the PATH yet.
CARGO ?= $(shell command -v cargo 2>/dev/null || echo "$$HOME/.cargo/bin/cargo")
ARCH  := $(shell uname -m)

# Naming the target keeps the flags below from build scripts and macros, which can't be linked statically.
TRIPLE := $(ARCH)-unknown-linux-gnu
STATIC := -C target-feature=+crt-static
OUT    := $(or $(CARGO_TARGET_DIR),target)
BUILT  := $(OUT)/$(TRIPLE)/release
# Tests, and what they test: built for development, with its assertions, and linked like what users get.
TESTED := $(OUT)/$(TRIPLE)/debug
TESTS  := --workspace --locked --target $(TRIPLE)

export LIBSECCOMP_LINK_TYPE := static
export LIBSECCOMP_LIB_PATH  := /usr/lib/$(ARCH)-linux-gnu

# Debian and Ubuntu packages.
BUILD_PACKAGES := ca-certificates curl gcc libc6-dev libseccomp-dev make pkg-config
TEST_PACKAGES  := busybox-static docker-registry e2fsprogs git iproute2 nftables procps strace tcpdump
# Another package of Docker would be removed for Debian's.
TEST_PACKAGES  += $(if $(shell command -v dockerd),,docker.io)
# What the kernel here lacks is tried on another one, in a virtual machine.
TEST_PACKAGES  += $(if $(shell command -v qemu-system-x86_64),,$(if $(filter x86_64,$(ARCH)),qemu-system-x86))
TEST_KERNEL    := $(OUT)/test-kernel

.PHONY: help setup-build setup-test build demo test compile-tests verify bench install uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# $(1): packages. Installs those that are missing, and says so first.
define install-missing
	@missing=; for package in $(1); do \
		dpkg-query -W -f '$${Status}' "$$package" 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		if ! command -v apt-get >/dev/null; then \
			echo "this is neither Debian nor Ubuntu: install what these packages hold, then go on:$$missing" >&2; exit 1; \
		elif [ "$$(id -u)" -ne 0 ]; then \
			echo "as root: apt-get install --no-install-recommends$$missing" >&2; exit 1; \
		fi; \
		echo "installing:$$missing"; \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	fi
endef

setup-build: ## install what building needs and is missing
	$(call install-missing,$(BUILD_PACKAGES))
	@if ! command -v "$(CARGO)" >/dev/null; then \
		install="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none"; \
		if [ "$(RUSTUP)" = no ]; then \
			echo "Rust is missing. Install it with" >&2; \
			echo "    $$install" >&2; \
			echo "the toolchain itself is fetched by the first build." >&2; \
			exit 1; \
		fi; \
		echo "installing rustup (https://rustup.rs) for Rust; \`make RUSTUP=no ...\` leaves that to you"; eval "$$install"; \
	fi
	@wanted=$$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml); \
	found=$$("$(CARGO)" --version | cut -d ' ' -f 2); \
	if [ "$$(printf '%s\n' "$$wanted" "$$found" | sort -V | head -n 1)" != "$$wanted" ]; then \
		echo "$(CARGO) is version $$found and $$wanted is needed: install rustup (https://rustup.rs), which fetches it" >&2; \
		exit 1; \
	fi

setup-test: setup-build ## install what the tests need and is missing
	$(call install-missing,$(TEST_PACKAGES))
	@if [ "$(ARCH)" = x86_64 ] && [ ! -e "$(TEST_KERNEL)" ] && command -v apt-get >/dev/null; then \
		package=$$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1); \
		if [ -z "$$package" ]; then \
			echo "no kernel package for virtual machines here: their tests will say UNTESTED"; \
		else \
			echo "fetching a kernel for virtual machines: $$package"; \
			rm -rf "$(TEST_KERNEL).new" && mkdir -p "$(TEST_KERNEL).new" && \
			( cd "$(TEST_KERNEL).new" && get="apt-get download -qq -o APT::Sandbox::User=root $$package" && \
				{ $$get 2>/dev/null || { apt-get update -qq && $$get; }; } && dpkg-deb -x ./*.deb . && rm -f ./*.deb ) && \
			mv "$(TEST_KERNEL).new" "$(TEST_KERNEL)" || echo "that failed: their tests will say UNTESTED"; \
		fi; \
	fi

# $(1): the directory of the built programs. $(2): the archive.
define pack-demo-image
	@"$(1)/skep-image-pack" "$(1)/whoami" whoami:latest "$(2)" 80/tcp >/dev/null
endef

build: setup-build ## build the static binary: target/skep, and the demo image: target/whoami.tar
	RUSTFLAGS="$(STATIC)" "$(CARGO)" build --release --locked --target $(TRIPLE) -p skep -p skep-whoami -p skep-image
	@mkdir -p target
	@# Renamed into place: a running binary can't be written to.
	@install -m 755 "$(BUILT)/skep" target/skep.new && mv -f target/skep.new target/skep
	@if ldd target/skep 2>/dev/null | grep -q '=>'; then echo "target/skep is not static" >&2; exit 1; fi
	$(call pack-demo-image,$(BUILT),target/whoami.tar)
	@ls -l target/skep target/whoami.tar | awk '{ printf "%s: %.1f MB\n", $$NF, $$5 / 1e6 }'

demo: build ## a cluster of three nodes on this machine, shown at work and taken down again (root)
	./target/skep lab demo

test: setup-test compile-tests ## run every test (root, for those that make namespaces and containers)
	@# nextest gives each test a process. Without it one follows the other: some count what their process uses, and
	@# virtual machines and clusters need the machine for themselves.
	@# What a test could not try here it prints as UNTESTED; nobody reads the output of tests that pass, so it is told last.
	@export RUSTFLAGS="$(STATIC)"; \
	if "$(CARGO)" nextest --version >/dev/null 2>&1; then \
		log="$(OUT)/nextest/default/junit.xml"; rm -f "$$log"; \
		"$(CARGO)" nextest run $(TESTS) --no-fail-fast && \
			"$(CARGO)" test $(TESTS) --doc --quiet; \
		ended=$$?; \
	else \
		log="$(OUT)/test.log"; \
		{ "$(CARGO)" test $(TESTS) --no-fail-fast -- --show-output --test-threads=1; echo $$? > "$$log.status"; } 2>&1 | \
			tee "$$log"; \
		ended=$$(cat "$$log.status"); \
	fi; \
	untested=$$(grep -o 'UNTESTED: [^<]*' "$$log" | sort -u); \
	echo "UNTESTED on this machine: $$(printf '%s' "$$untested" | grep -c .)"; \
	[ -z "$$untested" ] || printf '%s\n' "$$untested"; \
	exit "$$ended"

compile-tests: setup-build
	RUSTFLAGS="$(STATIC)" "$(CARGO)" test $(TESTS) --no-run --quiet
	$(call pack-demo-image,$(TESTED),$(TESTED)/whoami.tar)

verify: setup-build ## format, tidy, clippy with warnings as errors, documentation
	"$(CARGO)" xtask verify

bench: setup-test build compile-tests ## measure, side by side with Docker Swarm; the results go to docs/benchmarks.md (root)
	unshare --mount "$(TESTED)/peer-bench"
	@# What was mounted there went with the namespace.
	@rmdir /run/skep-lab /var/lib/skep-lab 2>/dev/null || true

install: ## put the built binary, its unit and its completions in place: PREFIX, DESTDIR
	@[ -x target/skep ] || { echo "there is no target/skep: run \`make build\` first" >&2; exit 1; }
	install -D -m 755 target/skep "$(DESTDIR)$(PREFIX)/bin/skep.new"
	mv -f "$(DESTDIR)$(PREFIX)/bin/skep.new" "$(DESTDIR)$(PREFIX)/bin/skep"
	install -d "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(PREFIX)/share/bash-completion/completions" \
		"$(DESTDIR)$(PREFIX)/share/zsh/site-functions" "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d"
	sed 's|/usr/local/bin/skep|$(PREFIX)/bin/skep|' deploy/systemd/skep.service > "$(DESTDIR)$(UNITDIR)/skep.service"
	target/skep completion bash > "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/skep"
	target/skep completion zsh > "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_skep"
	target/skep completion fish > "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/skep.fish"
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then \
		systemctl daemon-reload; echo "start it with: systemctl enable --now skep"; \
	fi

uninstall: ## remove what install put in place; data and settings stay
	rm -f "$(DESTDIR)$(PREFIX)/bin/skep" "$(DESTDIR)$(UNITDIR)/skep.service" \
		"$(DESTDIR)$(PREFIX)/share/bash-completion/completions/skep" \
		"$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_skep" \
		"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/skep.fish"

clean: ## remove everything that was built
	"$(CARGO)" clean
	rm -rf target
