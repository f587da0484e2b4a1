package attest

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The cases combine the proofs that a request may have.
func TestAuthenticate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := w.serve("optional")
	mine, second := w.token(triage, time.Minute), w.token(triage, 2*time.Minute)
	theirs := w.token("spiffe://acme.test/agent/other", time.Minute)
	expired := w.sign(w.fill(goodHeader, time.Now()), w.fill(claims(`%n+60`, `%n-5`), time.Now()))
	person := w.sign(w.fill(goodHeader, time.Now()), w.fill(claims(`spiffe://acme.test/agent/triage`, `ana`), time.Now()))
	stranger := must(newCA(t, "acme.test").X509SVID(triage, time.Hour))
	plain, mutual, bad := w.client(), w.client(w.svid(triage, time.Hour)), w.client(stranger)

	for _, test := range []struct {
		name         string
		client       *http.Client
		bearer, body string
		method, code string
		also         int
		counted      string
	}{
		{"no proof", plain, "", "", "", "unauthenticated", 0, "none no_proof"},
		{"bearer", plain, mine, "", "jwt-svid", "", 0, ""},
		{"body", plain, "", mine, "jwt-svid", "", 0, ""},
		{"equal bearer and body", plain, mine, mine, "jwt-svid", "", 0, ""},
		{"two tokens of one workload", plain, mine, second, "jwt-svid", "", 1, ""},
		{"another's token in the body", plain, mine, theirs, "", "two_identities", 0, "none two_identities"},
		{"a person's token in the body", plain, mine, person, "", "two_identities", 0, "none two_identities"},
		{"an expired token in the body", plain, mine, expired, "", "unauthenticated", 0, "jwt-svid expired"},
		{"a bad bearer token", plain, "x", mine, "", "unauthenticated", 0, "jwt-svid malformed"},
		{"certificate", mutual, "", "", "x509-svid", "", 0, ""},
		{"certificate and bearer", mutual, mine, "", "x509-svid", "", 1, ""},
		{"certificate and another's bearer", mutual, theirs, "", "", "two_identities", 0, "none two_identities"},
		{"certificate and an expired bearer", mutual, expired, "", "", "unauthenticated", 0, "jwt-svid expired"},
		{"certificate, bearer and the same body", mutual, mine, mine, "x509-svid", "", 1, ""},
		{"certificate, bearer and another body", mutual, mine, second, "x509-svid", "", 2, ""},
		{"certificate, bearer and another's body", mutual, mine, theirs, "", "two_identities", 0, "none two_identities"},
		{"certificate and body", mutual, "", mine, "x509-svid", "", 1, ""},
		{"certificate and another's body", mutual, "", theirs, "", "two_identities", 0, "none two_identities"},
		{"certificate and a person's body", mutual, "", person, "", "two_identities", 0, "none two_identities"},
		{"certificate and an expired body", mutual, "", expired, "", "unauthenticated", 0, "jwt-svid expired"},
		{"bad certificate", bad, "", "", "", "unauthenticated", 0, "x509-svid untrusted"},
		{"bad certificate and good body", bad, "", mine, "", "unauthenticated", 0, "x509-svid untrusted"},
		{"bad certificate and good bearer", bad, mine, "", "", "unauthenticated", 0, "x509-svid untrusted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.failures()
			a := call(t, test.client, server, test.bearer, test.body)
			if a.Method != test.method || a.Code != test.code || (a.ID == triage) != (test.code == "") || (a.Detail != "") != (test.code != "") || a.Also != test.also {
				t.Errorf("got response %+v", a)
			}
			if n := strings.Join(w.failures(), ", "); n != test.counted {
				t.Errorf("got failures %q, want %q", n, test.counted)
			}
		})
	}
}

// Several proofs expire with the earliest, whatever their order, and are all named.
func TestProofsExpireWithTheEarliest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	short, long, third := w.token(triage, time.Minute), w.token(triage, 3*time.Minute), w.token(triage, 2*time.Minute)
	earliest := must(w.verifier.JWT(short, time.Now())).Proof.Expires
	for _, tokens := range [][]string{{short, long, third}, {long, short, third}, {third, long, short}} {
		r := &http.Request{Header: http.Header{"Authorization": {"Bearer " + tokens[0]}}}
		who, err := w.verifier.Authenticate(r, tokens[1:]...)
		check(t, err)
		first := must(w.verifier.JWT(tokens[0], time.Now()))
		if !who.Proof.Expires.Equal(earliest) || who.Proof.SHA256 != first.Proof.SHA256 {
			t.Errorf("got the proof %+v, want that of the bearer token, until %s", who.Proof, earliest)
		}
		var want []string
		for _, token := range tokens[1:] {
			want = append(want, "jwt-svid "+must(w.verifier.JWT(token, time.Now())).Proof.SHA256.String())
		}
		if !slices.Equal(who.Also, want) {
			t.Errorf("got the other proofs %q, want %q", who.Also, want)
		}
	}
	if again := must(w.verifier.JWT(short, time.Now())); len(again.Also) != 0 {
		t.Errorf("the cached proof has the proofs of another call: %q", again.Also)
	}
}

func TestAuthorizationHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.token(triage, time.Minute)
	for _, test := range []struct {
		values []string
		want   Cause
	}{
		{[]string{"Bearer " + token}, ""},
		{[]string{"bearer " + token}, ""}, // RFC 9110, section 11.1
		{[]string{"Bearer " + token, "Bearer " + token}, CauseMalformed},
		{[]string{token}, CauseMalformed},
		{[]string{"Bearer"}, CauseMalformed},
		{[]string{"Bearer "}, CauseMalformed},
		{[]string{""}, CauseMalformed},
		{[]string{"Bearer  " + token}, CauseMalformed},
		{[]string{"Bearer " + token + " "}, CauseMalformed},
		{[]string{"Bearer " + token + ", Basic eA=="}, CauseMalformed},
		{[]string{"Basic YTpi"}, CauseMalformed},
		{[]string{"DPoP " + token}, CauseMalformed},
	} {
		r := &http.Request{Header: http.Header{"Authorization": test.values}}
		who, err := w.verifier.Authenticate(r, "")
		if got := causeOf(t, err); got != test.want || (who.ID == triage) != (test.want == "") {
			t.Errorf("%d values %.10q: got %q, want %q", len(test.values), test.values[0], got, test.want)
		}
	}
}

// A rotation invalidates cached tokens and the cached certificates of open
// connections.
func TestRotationInvalidatesCache(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	server := w.serve("optional")
	token, plain, mutual := w.token(triage, time.Minute), w.client(), w.client(w.svid(triage, time.Hour))
	both := func() [2]string { // over the same connections
		return [2]string{call(t, plain, server, token, "").Code, call(t, mutual, server, "", "").Code}
	}
	both()
	step := func(name string, change func(), grows uint64, want [2]string) {
		t.Helper()
		before := w.source.Generation()
		change()
		w.publish()
		w.source.poll()
		if g := w.source.Generation() - before; g != grows {
			t.Errorf("%s: the generation increased by %d, want %d", name, g, grows)
		}
		if got := both(); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	step("no change", func() {}, 0, [2]string{})
	step("new keys", func() { check(t, w.ca.RotateX509()); check(t, w.ca.RotateJWT()) }, 1, [2]string{})
	step("old JWT key retired", w.ca.RetireJWT, 1, [2]string{"unauthenticated", ""})
	w.failures()
	step("old X.509 authority retired", w.ca.RetireX509, 1, [2]string{"unauthenticated", "unauthenticated"})
	if n := w.failures(); !slices.Equal(n, []string{"jwt-svid unknown_key", "x509-svid untrusted"}) {
		t.Errorf("got failures %v", n)
	}
	// The server needs a certificate of the new authority, or clients reject it.
	files := w.source.certs[0]
	w.writeCert(files.certPath, files.keyPath, "spiffe://acme.test/broker", "127.0.0.1")
	w.source.poll()
	fresh := w.token(triage, time.Minute)
	if a := call(t, w.client(w.svid(triage, time.Hour)), server, "", fresh); a.ID != triage {
		t.Errorf("with new SVIDs: got response %+v", a)
	}
}

// The previous bundle stays in force while the file is not valid.
func TestBrokenBundleIsDegraded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.token(triage, time.Minute)
	generation := w.source.Generation()
	for _, content := range []string{"", "{", `{"keys":null}`, `{"keys":[],"keys":[]}`, "\ufeff{}", "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"} {
		check(t, os.WriteFile(w.bundle, []byte(content), 0o600))
		w.source.poll()
		if w.source.Degraded() == nil || w.source.Ready() != nil || w.source.Generation() != generation {
			t.Errorf("%q: degraded %v, ready %v", content, w.source.Degraded(), w.source.Ready())
		}
		w.verifier.tokens = newProofCache(16) // empty
		if _, err := w.verifier.JWT(token, time.Now()); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
	check(t, os.Remove(w.bundle))
	w.source.poll()
	if err := w.source.Degraded(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without the file: %v", err)
	}
	w.publish()
	w.source.poll()
	if err := w.source.Degraded(); err != nil {
		t.Errorf("with the file back: %v", err)
	}
}

func TestCachedTokenExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.token(triage, time.Minute)
	who, err := w.verifier.JWT(token, time.Now())
	check(t, err)
	for _, test := range []struct {
		at   time.Time
		want Cause
	}{
		{who.Proof.Expires.Add(-time.Nanosecond), ""},
		{who.Proof.Expires, CauseExpired},
		{who.Proof.Expires.Add(time.Hour), CauseExpired},
		{time.Now().Add(-Leeway - 2*time.Second), CauseNotYetValid},
	} {
		who, err := w.verifier.JWT(token, test.at)
		if got := causeOf(t, err); got != test.want || (who.ID == "") != (test.want != "") {
			t.Errorf("at %s: got %q, want %q", test.at, got, test.want)
		}
	}
}
