package main

import (
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// Names from elsewhere don't control the terminal.
func TestUnusedNamesArePrintable(t *testing.T) {
	const name = "login/ana\x1b[2J"
	var out strings.Builder
	writeUnused(&out, &api.UnusedReport{
		Permits: []api.UnusedThing{{Policy: name}}, Scopes: []api.UnusedThing{{Scope: name}}, Entitlements: []api.UnusedThing{{Entitlement: name}},
		Members: []api.UnusedMember{{Group: name}}, Unmeasured: []string{name},
	})
	if strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), `\x1b`) != 5 {
		t.Errorf("got %q, want the names escaped", out.String())
	}
}
