package token

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
	"accessbroker.internal/store"
)

func TestSchedule(t *testing.T) {
	cfg := KeysConfig{Algorithm: "ES256", RotateEvery: 24 * time.Hour, PublishAhead: time.Hour}
	key := func(signs time.Time, retires time.Time) *broker.SigningKey {
		return &broker.SigningKey{Algorithm: "ES256", Signs: signs, Retires: retires}
	}
	day := 24 * time.Hour
	for _, c := range []struct {
		name   string
		keys   []*broker.SigningKey
		now    time.Time
		create bool
		signs  time.Time
		retire int
	}{
		{"no key: one at once", nil, issuertest.Noon, true, issuertest.Noon, 0},
		{"nothing due", []*broker.SigningKey{key(issuertest.Noon, time.Time{})}, issuertest.Noon.Add(22 * time.Hour), false, time.Time{}, 0},
		{"time to publish", []*broker.SigningKey{key(issuertest.Noon, time.Time{})}, issuertest.Noon.Add(23 * time.Hour), true, issuertest.Noon.Add(day), 0},
		{"successor published", []*broker.SigningKey{key(issuertest.Noon, issuertest.Noon.Add(2*day)), key(issuertest.Noon.Add(day), time.Time{})}, issuertest.Noon.Add(23 * time.Hour), false, time.Time{}, 0},
		{"late: published an hour ahead", []*broker.SigningKey{key(issuertest.Noon, time.Time{})}, issuertest.Noon.Add(9 * day), true, issuertest.Noon.Add(9*day + time.Hour), 0},
		{"not yet retired", []*broker.SigningKey{key(issuertest.Noon, issuertest.Noon.Add(2*day)), key(issuertest.Noon.Add(day), time.Time{})}, issuertest.Noon.Add(2*day - time.Hour - 1), false, time.Time{}, 0},
		{"retired on the instant", []*broker.SigningKey{key(issuertest.Noon, issuertest.Noon.Add(day)), key(issuertest.Noon.Add(23*time.Hour), time.Time{})}, issuertest.Noon.Add(day), false, time.Time{}, 1},
		{"another algorithm", []*broker.SigningKey{{Algorithm: "RS256", Signs: issuertest.Noon}}, issuertest.Noon.Add(time.Minute), true, issuertest.Noon.Add(time.Hour + time.Minute), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := schedule(c.keys, cfg, c.now)
			if got.create != c.create || c.create && !got.signs.Equal(c.signs) || len(got.retire) != c.retire {
				t.Errorf("schedule = %+v", got)
			}
		})
	}
}

func TestOpenKeysRejectsConfig(t *testing.T) {
	cfg := testConfig(t, issuertest.Store(t), "ES256")
	cfg.LongestTTL = cfg.RotateEvery + 1
	if _, err := OpenKeys(t.Context(), cfg, issuertest.Noon); err == nil || !strings.Contains(err.Error(), "must outlive") {
		t.Errorf("rotation shorter than the longest ttl: got %v", err)
	}
	cfg = testConfig(t, issuertest.Store(t), "HS256")
	if _, err := OpenKeys(t.Context(), cfg, issuertest.Noon); err == nil {
		t.Error("OpenKeys accepted the algorithm HS256")
	}
}

// For a week, every token verifies with the JWKS of an hour before it was minted
// and with every later one until it expires, across rotations, restarts and pauses
// of the rotation.
func TestTokensVerifyUntilTheyExpire(t *testing.T) {
	s := issuertest.Store(t)
	cfg := testConfig(t, s, "ES256")
	keys := openKeys(t, cfg, issuertest.Noon)
	type issued struct {
		token string
		until time.Time
	}
	var tokens []issued
	var jwksBefore []byte // of an hour ago
	for hour := range 7 * 24 {
		now := issuertest.Noon.Add(time.Duration(hour) * time.Hour)
		if hour%50 < 40 { // pauses for 10 hours of each 50
			if err := keys.Step(t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
		if hour%30 == 29 {
			keys = openKeys(t, cfg, now)
		}
		l := issuertest.Lease(now)
		l.Expires = now.Add(cfg.LongestTTL)
		token := mint(t, New(testIssuer, testAudience, keys), l)
		if jwksBefore != nil {
			verify(t, jwksBefore, token)
		}
		tokens = append(tokens, issued{token, l.Expires})
		jwks := keys.JWKS(now)
		for _, one := range tokens {
			if now.Before(one.until) {
				verify(t, jwks, one.token)
			}
		}
		jwksBefore = jwks
	}
	checkRotated(t, s, keys)
}

func checkRotated(t *testing.T, s *store.Store, keys *Keys) {
	t.Helper()
	stored, err := s.SigningKeys(t.Context(), "token")
	if err != nil {
		t.Fatal(err)
	}
	if len(stored) < 6 || len(keys.List()) > 3 {
		t.Errorf("after a week: %d keys created, %d in use, want 6 or more, and 3 or fewer", len(stored), len(keys.List()))
	}
	var created, retired int
	for i := range s.Head().Size {
		item, err := s.Record(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		record, err := audit.Decode(item.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		switch record.Kind {
		case audit.KeyCreated:
			created++
		case audit.KeyRetired:
			retired++
		}
	}
	if created != len(stored) || retired != len(stored)-len(keys.List()) {
		t.Errorf("%d keys, %d in use, but the log has %d created and %d retired", len(stored), len(keys.List()), created, retired)
	}
}

// A signed JWT never passes for an access token, and no algorithm is used that its
// reader did not name.
func TestSign(t *testing.T) {
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), issuertest.Noon)
	claims := map[string]any{"iss": testIssuer, "aud": testAudience, "jti": broker.NewLeaseID(issuertest.Noon).String()}
	signed, err := keys.Sign(claims, issuertest.Noon, "RS256", "ES256")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(testIssuer, testAudience, keys).Inspect(t.Context(), signed); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("Inspect: got %v, want %v", err, broker.ErrNotFound)
	}
	for name, sign := range map[string]func() (string, error){
		"another algorithm": func() (string, error) { return keys.Sign(claims, issuertest.Noon, "RS256") },
		"before the key":    func() (string, error) { return keys.Sign(claims, issuertest.Noon.Add(-1), "ES256") },
	} {
		if signed, err := sign(); err == nil || signed != "" {
			t.Errorf("%s: got %q, %v", name, signed, err)
		}
	}
}

func TestTwoReplicasCreateOneKey(t *testing.T) {
	cfg := testConfig(t, issuertest.Store(t), "ES256")
	a, b := openKeys(t, cfg, issuertest.Noon), openKeys(t, cfg, issuertest.Noon)
	due := issuertest.Noon.Add(23 * time.Hour)
	if err := a.Step(t.Context(), due); err != nil {
		t.Fatal(err)
	}
	// b decided before it saw the key of a.
	if err := b.create(t.Context(), schedule(rows(*b.ring.Load()), cfg, due), due); err != nil {
		t.Fatal(err)
	}
	if err := b.Step(t.Context(), due); err != nil {
		t.Fatal(err)
	}
	if got, want := string(b.JWKS(issuertest.Noon)), string(a.JWKS(issuertest.Noon)); got != want || len(b.List()) != 2 {
		t.Errorf("the replicas publish %s and %s, want the same 2 keys", want, got)
	}
}

// others are the duties of a process while another one has them all.
type others struct{ broker.Duties }

func (others) Hold(ctx context.Context, _ ...string) broker.Hold { return none{broker.Alone.Hold(ctx)} }

type none struct{ broker.Hold }

func (none) Has(string) bool { return false }

// One process rotates. The others start, read what it did, and retire no key twice.
func TestOneReplicaRotates(t *testing.T) {
	s := issuertest.Store(t)
	cfg := testConfig(t, s, "ES256")
	a := openKeys(t, cfg, issuertest.Noon)
	cfg.Duties = others{broker.Alone}
	b := openKeys(t, cfg, issuertest.Noon)
	for hour := range 3 * 24 {
		now := issuertest.Noon.Add(time.Duration(hour) * time.Hour)
		if err := b.Step(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if got, want := string(b.JWKS(now)), string(a.JWKS(now)); got != want {
			t.Fatalf("after %d hours: a process without the duty publishes %s, want %s", hour, got, want)
		}
		if err := a.Step(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if err := b.Follow(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := string(b.JWKS(now)), string(a.JWKS(now)); got != want {
			t.Fatalf("after %d hours: a process that follows publishes %s, want %s", hour, got, want)
		}
	}
	before := s.Head().Size
	for _, row := range must(s.SigningKeys(t.Context(), "token"))(t) {
		if row.Sealed == nil {
			if err := a.retire(t.Context(), row); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after := s.Head().Size; after != before || before < 4 {
		t.Errorf("got %d records after retired keys were retired again, want %d, and some rotations before", after, before)
	}
}

func must[V any](v V, err error) func(*testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestKeysAreSealed(t *testing.T) {
	s := issuertest.Store(t)
	cfg := testConfig(t, s, "ES256")
	openKeys(t, cfg, issuertest.Noon)
	cfg.Sealer = issuertest.Sealer(t, 2)
	if _, err := OpenKeys(t.Context(), cfg, issuertest.Noon); err == nil || !strings.Contains(err.Error(), "not among seal_keys") {
		t.Errorf("opened with another seal key: %v", err)
	}
	cfg.Sealer = issuertest.Sealer(t, 2, 1)
	keys := openKeys(t, cfg, issuertest.Noon)
	before, err := s.SigningKeys(t.Context(), "token")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := keys.Reseal(t.Context()); err != nil || n != 1 {
		t.Fatalf("Reseal = %d, %v, want 1", n, err)
	}
	if n, err := keys.Reseal(t.Context()); err != nil || n != 0 {
		t.Fatalf("second Reseal = %d, %v, want 0", n, err)
	}
	after, err := s.SigningKeys(t.Context(), "token")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(before[0].Sealed, after[0].Sealed) {
		t.Error("Reseal did not change the sealed key")
	}
	cfg.Sealer = issuertest.Sealer(t, 2)
	if _, err := OpenKeys(t.Context(), cfg, issuertest.Noon); err != nil {
		t.Errorf("opened without the old seal key: %v", err)
	}
}

func TestTokenConforms(t *testing.T) {
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), issuertest.Noon)
	issuertest.Conform(t, New(testIssuer, testAudience, keys), issuertest.Lease(issuertest.Noon), nil)
}
