package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestIDsAreMonotonic(t *testing.T) {
	var ids []string
	for i := range 10_000 {
		at := noon
		if i%3 == 0 {
			at = noon.Add(-time.Hour) // the clock was set back
		}
		ids = append(ids, NewRequestID(at).String())
	}
	if !slices.IsSorted(ids) || len(slices.Compact(ids)) != 10_000 {
		t.Error("ids are not strictly monotonic")
	}
}

func TestIDText(t *testing.T) {
	id := NewLeaseID(noon)
	if id[6]>>4 != 7 || id[8]>>6 != 2 {
		t.Errorf("got %x, want a UUIDv7", id)
	}
	text := id.String()
	if got, err := ParseLeaseID(text); err != nil || got != id {
		t.Errorf("%q: got %v, %v, want %v", text, got, err, id)
	}
	last := text[:len(text)-1]
	for _, bad := range []string{"", "lse_", "req_" + text[4:], strings.ToUpper(text), text + "0", last, last + "v", last + "!", "lse_" + strings.Repeat("0", 26) + "\n"} {
		if bad == text {
			continue
		}
		if _, err := ParseLeaseID(bad); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: got %v, want %v", bad, err, ErrNotFound)
		}
	}
	if (LeaseID{}).String() != "" {
		t.Errorf("zero ID: got %q, want an empty string", LeaseID{})
	}
}

func TestSPIFFEPaths(t *testing.T) {
	for id, want := range map[string][]string{
		"spiffe://acme.test/a/b": {"spiffe://acme.test/a/b", "spiffe://acme.test/a"},
		"spiffe://acme.test/a":   {"spiffe://acme.test/a"},
		"spiffe://acme.test":     nil,
		"":                       nil,
	} {
		if got := SPIFFEPaths(id); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", id, got, want)
		}
	}
}

func TestWithLabels(t *testing.T) {
	rules := &Rules{Labels: []WorkloadLabels{
		{Under: "spiffe://acme.test/agent", Kind: KindAgent, Team: "support"},
		{Under: "spiffe://acme.test/agent/billing", Kind: KindAgent, Team: "billing"},
	}}
	for id, want := range map[string]string{
		"spiffe://acme.test/agent/triage":    "agent support",
		"spiffe://acme.test/agent/billing/x": "agent billing",
		"spiffe://acme.test/agents":          "workload ", // labels apply to whole path segments
		"spiffe://acme.test.evil/agent/x":    "workload ",
	} {
		who := rules.WithLabels(Identity{ID: id, Kind: KindAgent, Team: "forged"})
		if got := fmt.Sprintf("%s %s", who.Kind, who.Team); who.Kind == KindNone && want != "" || got != want && id != "" {
			t.Errorf("%s: got %q, want %q", id, got, want)
		}
	}
	if got := rules.WithLabels(Identity{}); got.Kind != KindNone {
		t.Errorf("zero identity: got kind %s, want none", got.Kind)
	}
}

func TestSecretDoesNotShow(t *testing.T) {
	const secret = "hvs.very-secret"
	s := NewSecret(map[string]string{"token": secret})
	var log strings.Builder
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("x", "s", s, "p", &s, "c", Credential{Secret: s})
	text := fmt.Sprintf("%v %+v %#v %s %q %d %x %v %+v %#v", s, s, s, s, s, s, s, &s, Credential{Secret: s}, Issued{Credential: Credential{Secret: s}})
	marshalled, err := json.Marshal(map[string]any{"s": s})
	if err == nil {
		t.Fatalf("marshalling: got %s, want an error", marshalled)
	}
	for where, got := range map[string]string{"fmt": text, "slog": log.String(), "error": err.Error()} {
		if strings.Contains(got, secret) || strings.Contains(got, fmt.Sprintf("%x", secret)) {
			t.Errorf("%s shows the secret: %s", where, got)
		}
	}
	if s.Reveal()["token"] != secret {
		t.Errorf("got %q from Reveal, want the secret", s.Reveal()["token"])
	}
}
