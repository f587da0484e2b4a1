package audit

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// checkOutline checks that the outline of a leaf agrees with the decoded record.
func checkOutline(t *testing.T, leaf []byte, r *Record) {
	t.Helper()
	o, err := Glance(leaf)
	if err != nil {
		t.Errorf("Glance(%s): %v", leaf, err)
		return
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(leaf, &fields); err != nil {
		t.Fatal(err)
	}
	if !o.Time.Equal(r.Time) || !bytes.Equal(o.Request, fields["request"]) || !bytes.Equal(o.Lease, fields["lease"]) {
		t.Errorf("got %+v of\n%s", o, leaf)
	}
	if kind := string(r.Kind); !strings.ContainsAny(string(fields["kind"]), `\`) && string(o.Kind) != kind {
		t.Errorf("got kind %q, want %q", o.Kind, kind)
	}
}

func TestGlanceAgreesWithDecode(t *testing.T) {
	full := fullRecord()
	bare := Record{Kind: PolicyLoaded, Time: time.Date(2026, 2, 3, 4, 5, 6, 7e6, time.UTC)}
	// Texts that imitate the structure of a leaf.
	hostile := fullRecord()
	hostile.Caller.ID = `","kind":"lease.issued","time":"2020-01-01T00:00:00.000Z","x":{[\`
	hostile.Request.Scopes = []string{`"ttl":`, `\`, `\"`, `}]`, "\u2028"}
	for _, r := range []Record{full, bare, hostile} {
		leaf := mustEntry(t, r).Leaf()
		decoded, err := Decode(leaf)
		if err != nil {
			t.Fatal(err)
		}
		checkOutline(t, leaf, &decoded)
	}
}

func TestGlanceRefusesOtherTexts(t *testing.T) {
	for _, text := range []string{"", "{", "{}", "[]", "null", `{"kind"}`, `{"kind":`, `{"kind":"a"}`, `{"kind":"a","time":"yesterday"}`, `{"time":"2026-02-03T04:05:06.007Z"}`, `{"kind":"a\`, `{"kind":{"`} {
		if o, err := Glance([]byte(text)); err == nil {
			t.Errorf("Glance(%q) = %+v, want an error", text, o)
		}
	}
}

func BenchmarkGlance(b *testing.B) {
	leaf := mustEntry(b, fullRecord()).Leaf()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Glance(leaf); err != nil {
			b.Fatal(err)
		}
	}
}
