package issuers

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/store"
)

func TestPlan(t *testing.T) {
	cfg := KeysConfig{Algorithm: "ES256", RotateEvery: 24 * time.Hour, PublishAhead: time.Hour}
	key := func(signs time.Time, retires time.Time) *broker.SigningKey {
		return &broker.SigningKey{Algorithm: "ES256", Signs: signs, Retires: retires}
	}
	day := 24 * time.Hour
	for _, c := range []struct {
		name   string
		keys   []*broker.SigningKey
		now    time.Time
		make   bool
		signs  time.Time
		retire int
	}{
		{"none: one at once", nil, noon, true, noon, 0},
		{"young", []*broker.SigningKey{key(noon, time.Time{})}, noon.Add(22 * time.Hour), false, time.Time{}, 0},
		{"time to publish", []*broker.SigningKey{key(noon, time.Time{})}, noon.Add(23 * time.Hour), true, noon.Add(day), 0},
		{"published, not signing", []*broker.SigningKey{key(noon, noon.Add(2*day)), key(noon.Add(day), time.Time{})}, noon.Add(23 * time.Hour), false, time.Time{}, 0},
		{"late: verifiers still get their hour", []*broker.SigningKey{key(noon, time.Time{})}, noon.Add(9 * day), true, noon.Add(9*day + time.Hour), 0},
		{"the old one's tokens are dead", []*broker.SigningKey{key(noon, noon.Add(2*day)), key(noon.Add(day), time.Time{})}, noon.Add(2*day - time.Hour - 1), false, time.Time{}, 0},
		{"on the instant", []*broker.SigningKey{key(noon, noon.Add(day)), key(noon.Add(23*time.Hour), time.Time{})}, noon.Add(day), false, time.Time{}, 1},
		{"another algorithm", []*broker.SigningKey{{Algorithm: "RS256", Signs: noon}}, noon.Add(time.Minute), true, noon.Add(time.Hour + time.Minute), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := plan(c.keys, cfg, c.now)
			if got.make != c.make || c.make && !got.signs.Equal(c.signs) || len(got.retire) != c.retire {
				t.Errorf("plan = %+v", got)
			}
		})
	}
}

func TestRotationMustOutliveTokens(t *testing.T) {
	cfg := testConfig(t, testStore(t), "ES256")
	cfg.LongestTTL = cfg.RotateEvery + 1
	if _, err := OpenKeys(t.Context(), cfg, noon); err == nil || !strings.Contains(err.Error(), "must outlive") {
		t.Errorf("a rotation shorter than the longest ttl: %v", err)
	}
	cfg = testConfig(t, testStore(t), "HS256")
	if _, err := OpenKeys(t.Context(), cfg, noon); err == nil {
		t.Error("tokens are signed by a shared secret")
	}
}

// Over a week, every token verifies by the JWKS from before it was minted until
// it is dead, through rotations, restarts and a long pause.
func TestTokensVerifyAllTheirLife(t *testing.T) {
	s := testStore(t)
	cfg := testConfig(t, s, "ES256")
	keys := openKeys(t, cfg, noon)
	type living struct {
		token string
		until time.Time
	}
	var alive []living
	var jwksBefore []byte // what a verifier fetched up to an hour ago
	for hour := range 7 * 24 {
		now := noon.Add(time.Duration(hour) * time.Hour)
		if hour%50 < 40 { // the loop stands still for ten hours now and then
			if err := keys.Step(t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
		if hour%30 == 29 {
			keys = openKeys(t, cfg, now)
		}
		l := testLease(now)
		l.Expires = now.Add(cfg.LongestTTL)
		token := mint(t, NewToken(testIssuer, testAudience, keys), l)
		if jwksBefore != nil {
			verify(t, jwksBefore, token)
		}
		alive = append(alive, living{token, l.Expires})
		jwks := keys.JWKS(now)
		for _, one := range alive {
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
		t.Errorf("after a week %d keys were made and %d are in use", len(stored), len(keys.List()))
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
		t.Errorf("%d keys, %d in use: the log says %d created, %d retired", len(stored), len(keys.List()), created, retired)
	}
}

func TestTwoReplicasMakeOneKey(t *testing.T) {
	cfg := testConfig(t, testStore(t), "ES256")
	a, b := openKeys(t, cfg, noon), openKeys(t, cfg, noon)
	for _, keys := range []*Keys{a, b} {
		if err := keys.Step(t.Context(), noon.Add(23*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := string(b.JWKS(noon)), string(a.JWKS(noon)); got != want && len(a.List()) == len(b.List()) || len(b.List()) != 2 {
		t.Errorf("two replicas publish %s and %s", want, got)
	}
}

func TestKeysAreSealed(t *testing.T) {
	s := testStore(t)
	cfg := testConfig(t, s, "ES256")
	openKeys(t, cfg, noon)
	cfg.Sealer = testSealer(t, 2)
	if _, err := OpenKeys(t.Context(), cfg, noon); err == nil || !strings.Contains(err.Error(), "not among seal_keys") {
		t.Errorf("opened by another key: %v", err)
	}
	cfg.Sealer = testSealer(t, 2, 1)
	keys := openKeys(t, cfg, noon)
	before, _ := s.SigningKeys(t.Context(), "token")
	if n, err := keys.Reseal(t.Context()); err != nil || n != 1 {
		t.Fatalf("Reseal = %d, %v", n, err)
	}
	if n, err := keys.Reseal(t.Context()); err != nil || n != 0 {
		t.Fatalf("Reseal again = %d, %v", n, err)
	}
	after, _ := s.SigningKeys(t.Context(), "token")
	if bytes.Equal(before[0].Sealed, after[0].Sealed) {
		t.Error("the envelope is the same")
	}
	cfg.Sealer = testSealer(t, 2)
	if _, err := OpenKeys(t.Context(), cfg, noon); err != nil {
		t.Errorf("without the old key: %v", err)
	}
}

// conforms holds an issuer to broker.Issuer's contract; every issuer is
// tested by it.
func conforms(t *testing.T, issuer broker.Issuer, l broker.Lease, e *broker.Entitlement) {
	t.Helper()
	prepared, err := issuer.Prepare(t.Context(), broker.Order{Lease: l, Entitlement: e})
	if err != nil {
		t.Fatal(err)
	}
	l.Handle = prepared.Handle
	for name, value := range prepared.Key.Reveal() {
		if bytes.Contains(l.Handle, []byte(value)) {
			t.Errorf("the handle holds the key's %s", name)
		}
	}
	c, handle, err := issuer.Issue(t.Context(), broker.Order{Lease: l, Entitlement: e, Key: prepared.Key})
	if err != nil {
		t.Fatal(err)
	}
	if handle != nil {
		l.Handle = handle
	}
	if c.Expires.After(l.Expires) || c.Expires.IsZero() || c.Type == "" || c.Hash.IsZero() {
		t.Errorf("issued %+v for a lease until %s", c, l.Expires)
	}
	for name, value := range c.Secret.Reveal() {
		if len(value) > 8 && bytes.Contains(l.Handle, []byte(value)) {
			t.Errorf("the handle holds the secret's %s", name)
		}
	}
	for range 2 {
		if err := issuer.Revoke(t.Context(), l); err != nil && !errors.Is(err, broker.ErrNotRevocable) && !errors.Is(err, broker.ErrQueued) {
			t.Errorf("ending it: %v", err)
		}
	}
}

func TestTokenConforms(t *testing.T) {
	keys := openKeys(t, testConfig(t, testStore(t), "ES256"), noon)
	conforms(t, NewToken(testIssuer, testAudience, keys), testLease(noon), nil)
}
