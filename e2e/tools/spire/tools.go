//go:build tools

// Package spire pins the SPIRE that the end-to-end tests run against. It is a
// module of its own, because SPIRE's dependencies are not ours.
package spire

import (
	_ "github.com/spiffe/spire/cmd/spire-agent"
	_ "github.com/spiffe/spire/cmd/spire-server"
)
