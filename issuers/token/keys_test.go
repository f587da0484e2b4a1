package token

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
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
		{"none: one at once", nil, issuertest.Noon, true, issuertest.Noon, 0},
		{"young", []*broker.SigningKey{key(issuertest.Noon, time.Time{})}, issuertest.Noon.Add(22 * time.Hour), false, time.Time{}, 0},
		{"time to publish", []*broker.SigningKey{key(issuertest.Noon, time.Time{})}, issuertest.Noon.Add(23 * time.Hour), true, issuertest.Noon.Add(day), 0},
		{"published, not signing", []*broker.SigningKey{key(issuertest.Noon, issuertest.Noon.Add(2*day)), key(issuertest.Noon.Add(day), time.Time{})}, issuertest.Noon.Add(23 * time.Hour), false, time.Time{}, 0},
		{"late: verifiers still get their hour", []*broker.SigningKey{key(issuertest.Noon, time.Time{})}, issuertest.Noon.Add(9 * day), true, issuertest.Noon.Add(9*day + time.Hour), 0},
		{"the old one's tokens are dead", []*broker.SigningKey{key(issuertest.Noon, issuertest.Noon.Add(2*day)), key(issuertest.Noon.Add(day), time.Time{})}, issuertest.Noon.Add(2*day - time.Hour - 1), false, time.Time{}, 0},
		{"on the instant", []*broker.SigningKey{key(issuertest.Noon, issuertest.Noon.Add(day)), key(issuertest.Noon.Add(23*time.Hour), time.Time{})}, issuertest.Noon.Add(day), false, time.Time{}, 1},
		{"another algorithm", []*broker.SigningKey{{Algorithm: "RS256", Signs: issuertest.Noon}}, issuertest.Noon.Add(time.Minute), true, issuertest.Noon.Add(time.Hour + time.Minute), 0},
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
	cfg := testConfig(t, issuertest.Store(t), "ES256")
	cfg.LongestTTL = cfg.RotateEvery + 1
	if _, err := OpenKeys(t.Context(), cfg, issuertest.Noon); err == nil || !strings.Contains(err.Error(), "must outlive") {
		t.Errorf("a rotation shorter than the longest ttl: %v", err)
	}
	cfg = testConfig(t, issuertest.Store(t), "HS256")
	if _, err := OpenKeys(t.Context(), cfg, issuertest.Noon); err == nil {
		t.Error("tokens are signed by a shared secret")
	}
}

// Over a week, every token verifies by the JWKS from before it was minted until
// it is dead, through rotations, restarts and a long pause.
func TestTokensVerifyAllTheirLife(t *testing.T) {
	s := issuertest.Store(t)
	cfg := testConfig(t, s, "ES256")
	keys := openKeys(t, cfg, issuertest.Noon)
	type living struct {
		token string
		until time.Time
	}
	var alive []living
	var jwksBefore []byte // what a verifier fetched up to an hour ago
	for hour := range 7 * 24 {
		now := issuertest.Noon.Add(time.Duration(hour) * time.Hour)
		if hour%50 < 40 { // the loop stands still for ten hours now and then
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
	cfg := testConfig(t, issuertest.Store(t), "ES256")
	a, b := openKeys(t, cfg, issuertest.Noon), openKeys(t, cfg, issuertest.Noon)
	for _, keys := range []*Keys{a, b} {
		if err := keys.Step(t.Context(), issuertest.Noon.Add(23*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := string(b.JWKS(issuertest.Noon)), string(a.JWKS(issuertest.Noon)); got != want && len(a.List()) == len(b.List()) || len(b.List()) != 2 {
		t.Errorf("two replicas publish %s and %s", want, got)
	}
}

func TestKeysAreSealed(t *testing.T) {
	s := issuertest.Store(t)
	cfg := testConfig(t, s, "ES256")
	openKeys(t, cfg, issuertest.Noon)
	cfg.Sealer = issuertest.Sealer(t, 2)
	if _, err := OpenKeys(t.Context(), cfg, issuertest.Noon); err == nil || !strings.Contains(err.Error(), "not among seal_keys") {
		t.Errorf("opened by another key: %v", err)
	}
	cfg.Sealer = issuertest.Sealer(t, 2, 1)
	keys := openKeys(t, cfg, issuertest.Noon)
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
	cfg.Sealer = issuertest.Sealer(t, 2)
	if _, err := OpenKeys(t.Context(), cfg, issuertest.Noon); err != nil {
		t.Errorf("without the old key: %v", err)
	}
}

func TestTokenConforms(t *testing.T) {
	keys := openKeys(t, testConfig(t, issuertest.Store(t), "ES256"), issuertest.Noon)
	issuertest.Conform(t, New(testIssuer, testAudience, keys), issuertest.Lease(issuertest.Noon), nil)
}
