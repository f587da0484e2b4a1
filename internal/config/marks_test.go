package config

import (
	"strings"
	"testing"
	"time"
)

func withMark(keys string) string {
	return strings.Replace(goodConfig, "team: support}", "team: support, "+keys+"}", 1)
}

func TestMarksOfWorkloads(t *testing.T) {
	c, err := understand(sealedDir(t), withMark(`purpose: " sorts tickets ", model: claude, ends: 2026-12-31, ceiling: {tickets-api: ["tickets:read"], orders-db-ro: all}`))
	if err != nil {
		t.Fatal(err)
	}
	m := c.Labels[0]
	if m.Purpose != "sorts tickets" || m.Model != "claude" || !m.Ends.Equal(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("got %+v", m)
	}
	if got, want := strings.Join(m.Ceiling.Texts(), ", "), "orders-db-ro: all, tickets-api: tickets:read"; got != want {
		t.Errorf("got ceiling %q, want %q", got, want)
	}
	c, err = understand(sealedDir(t), withMark(`ceiling: {}, ends: "2026-12-31T18:00:00+01:00"`))
	if err != nil {
		t.Fatal(err)
	}
	if m := c.Labels[0]; m.Ceiling == nil || len(m.Ceiling.Parts) != 0 || !m.Ends.Equal(time.Date(2026, 12, 31, 17, 0, 0, 0, time.UTC)) {
		t.Errorf("got %+v, want a ceiling of nothing", m)
	}
	if c, err := understand(sealedDir(t), goodConfig); err != nil || c.Labels[0].Ceiling != nil {
		t.Errorf("got %+v, %v, want no ceiling", c.Labels, err)
	}
}

func TestMistakesInMarks(t *testing.T) {
	for keys, want := range map[string]string{
		"ceiling: all":                                             "ceiling",
		"ceiling: {tickets-api: some}":                             "write all, or a list of at least one scope",
		"ceiling: {tickets-api: []}":                               "write all, or a list of at least one scope",
		`ceiling: {tickets-api: ""}`:                               "write all, or a list of at least one scope",
		"ceiling: {tickets-api: }":                                 "ceiling.tickets-api",
		"ceiling: {tickets-api: {read: all}}":                      "ceiling.tickets-api",
		`ceiling: {tickets-api: ["tickets:read", "tickets:read"]}`: "a scope is repeated",
		"ceiling: ":                            "the key has no value",
		"ends: tomorrow":                       "write the last day",
		"ends: 2026-02-30":                     "write the last day",
		`ends: "9999-12-31"`:                   "write the last day",
		`purpose: "a\nb"`:                      "one line",
		`purpose: "a` + "\u202e" + `b"`:        "one line",
		"purpose: " + strings.Repeat("x", 301): "at most 300 bytes",
		"model: " + strings.Repeat("x", 129):   "at most 128 bytes",
		"model: [a]":                           "model",
	} {
		if _, err := understand(sealedDir(t), withMark(keys)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: got %v, want an error with %q", keys, err, want)
		}
	}
}
