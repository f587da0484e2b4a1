package verify

import (
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// The examples of the draft (section 4.1).
func TestStatusListVectors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		bits   int
		packed string
		want   []byte
	}{
		{1, "78dadbb918000217015d", []byte{1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1}},
		{2, "78da3be9f2130003df0207", []byte{1, 2, 0, 3, 0, 1, 0, 1, 1, 2, 3, 3}},
	} {
		packed, err := hex.DecodeString(test.packed)
		if err != nil {
			t.Fatal(err)
		}
		s := &listState{bits: test.bits}
		if s.bytes, err = inflate(packed); err != nil {
			t.Fatal(err)
		}
		for index, want := range test.want {
			if got, ok := s.at(int64(index)); !ok || got != want {
				t.Errorf("bits %d, index %d: got %d, want %d", test.bits, index, got, want)
			}
		}
		if _, ok := s.at(int64(len(test.want))); ok {
			t.Errorf("bits %d: there is a status beyond the end", test.bits)
		}
	}
}

// A token whose bit is set is revoked, and one beyond the list is refused.
func TestStatusListDecides(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	uri := i.list("1", []byte{0b100, 0}, nil)
	for index, want := range map[int]string{0: "", 1: "", 2: "revoked", 3: "", 15: "", 16: "beyond", 1 << 40: "beyond"} {
		err := v.check(t, i.token(at(uri, index)))
		if (err == nil) != (want == "") || err != nil && (!errors.Is(err, ErrInvalidToken) || !strings.Contains(err.Error(), want)) {
			t.Errorf("index %d: got %v, want %q", index, err, want)
		}
	}
	if n := i.count("/status/1"); n != 1 {
		t.Errorf("the list was fetched %d times", n)
	}
}

// A list that is not the issuer's current statement about its tokens makes them unusable.
func TestBadStatusLists(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	other := newECKey(t)
	header := object{"alg": "ES256", "kid": "k1", "typ": "statuslist+jwt"}
	bomb := deflate(t, make([]byte, maxList+1))
	huge := deflate(t, make([]byte, 64<<20))
	now := i.clock().Unix()
	claims := func(changes object) object {
		return changed(object{
			"iss": i.url, "sub": i.url + "/status/1", "iat": now, "exp": now + 60, "ttl": 15, "status_list": object{"bits": 1, "lst": deflate(t, []byte{0})},
		}, changes)
	}
	list := func(l object) string { return i.sign(header, claims(object{"status_list": l}), i.key) }
	for name, token := range map[string]string{
		"not a JWT":             "list",
		"another key":           i.sign(header, claims(nil), other),
		"an access token":       i.sign(object{"alg": "ES256", "kid": "k1", "typ": "at+jwt"}, claims(nil), i.key),
		"alg none":              i.sign(changed(header, object{"alg": "none"}), claims(nil), nil),
		"an unknown key":        i.sign(changed(header, object{"kid": "k2"}), claims(nil), i.key),
		"of another issuer":     i.sign(header, claims(object{"iss": "https://evil.test"}), i.key),
		"another list":          i.sign(header, claims(object{"sub": i.url + "/status/2"}), i.key),
		"no sub":                i.sign(header, claims(object{"sub": nil}), i.key),
		"expired":               i.sign(header, claims(object{"exp": now}), i.key),
		"exp as a text":         i.sign(header, claims(object{"exp": "x"}), i.key),
		"no iat":                i.sign(header, claims(object{"iat": nil}), i.key),
		"from the future":       i.sign(header, claims(object{"iat": now + 60}), i.key),
		"a negative ttl":        i.sign(header, claims(object{"ttl": -1}), i.key),
		"ttl zero":              i.sign(header, claims(object{"ttl": 0}), i.key),
		"no list":               i.sign(header, claims(object{"status_list": nil}), i.key),
		"3 bits":                list(object{"bits": 3, "lst": deflate(t, []byte{0})}),
		"no bits":               list(object{"lst": deflate(t, []byte{0})}),
		"no lst":                list(object{"bits": 1}),
		"lst with padding":      list(object{"bits": 1, "lst": deflate(t, []byte{0}) + "="}),
		"not compressed":        list(object{"bits": 1, "lst": "AAAA"}),
		"a truncated list":      list(object{"bits": 1, "lst": deflate(t, []byte("0123456789"))[:8]}),
		"data after the list":   list(object{"bits": 1, "lst": base64url.EncodeToString(append(mustDecode(t, deflate(t, []byte{0})), 1))}),
		"a bomb":                list(object{"bits": 1, "lst": bomb}),
		"a bomb of 64 MiB":      list(object{"bits": 1, "lst": huge}),
		"a repeated sub":        i.sign(header, strings.Replace(string(jsonOf(t, claims(nil))), `"sub":`, `"sub":"x","sub":`, 1), i.key),
		"too long for a list":   list(object{"bits": 1, "lst": strings.Repeat("A", maxListToken)}),
		"a body that goes on 2": i.sign(header, claims(nil), i.key) + ".x",
	} {
		i.serveList("1", token)
		if err := i.verifier(nil).check(t, i.token(at(i.url+"/status/1", 0))); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: got %v, want unavailable", name, err)
		}
	}
	i.serveList("1", i.sign(header, claims(nil), i.key))
	if err := i.verifier(nil).check(t, i.token(at(i.url+"/status/1", 0))); err != nil {
		t.Errorf("the control: %v", err)
	}
}

func mustDecode(t *testing.T, text string) []byte {
	b, err := base64url.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Answers that are not a list make its tokens unusable, and redirects are not followed.
func TestBadStatusListAnswers(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	uri := i.list("2", []byte{0}, nil)
	for name, h := range map[string]http.HandlerFunc{
		"not found":     http.NotFound,
		"a redirect":    func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, uri, http.StatusFound) },
		"a page":        func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"not modified":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) },
		"partly":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPartialContent) },
		"a closed line": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		i.handle("/status/1", h)
		if err := i.verifier(nil).check(t, i.token(at(i.url+"/status/1", 0))); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: got %v, want unavailable", name, err)
		}
	}
	if n := i.count("/status/2"); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

// A list is used until its ttl, then fetched again; while that fails, until its exp.
func TestStatusListAges(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	uri := i.list("1", []byte{0}, nil)
	token := i.token(at(uri, 0))
	if err := v.check(t, token); err != nil {
		t.Fatal(err)
	}
	i.list("1", []byte{1}, nil)
	i.pass(14 * time.Second)
	if err := v.check(t, token); err != nil {
		t.Errorf("within the ttl: %v", err)
	}
	i.handle("/status/1", http.NotFound)
	i.pass(time.Second)
	if err := v.check(t, token); err != nil {
		t.Errorf("after the ttl, while the issuer is down: %v", err)
	}
	i.pass(45 * time.Second)
	if err := v.check(t, token); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after the exp: got %v, want unavailable", err)
	}
	i.list("1", []byte{1}, nil)
	i.pass(2 * time.Second)
	if err := v.check(t, token); !errors.Is(err, ErrInvalidToken) {
		t.Errorf("the new list: got %v, want revoked", err)
	}
}

// An unchanged list is not transferred again.
func TestStatusListIsRevalidated(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	uri := i.list("1", []byte{0}, nil)
	full := i.handlers["/status/1"]
	var mu sync.Mutex
	sent := 0
	i.handle("/status/1", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"a"`)
		if r.Header.Get("If-None-Match") == `"a"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		mu.Lock()
		sent++
		mu.Unlock()
		full(w, r)
	})
	for range 4 {
		if err := v.check(t, i.token(at(uri, 0))); err != nil {
			t.Error(err)
		}
		i.pass(15 * time.Second)
	}
	if n := i.count("/status/1"); sent != 1 || n != 4 {
		t.Errorf("%d of %d answers had the list, want 1 of 4", sent, n)
	}
	if err := v.check(t, i.token(at(uri, 0))); !errors.Is(err, ErrUnavailable) {
		t.Errorf("an expired list that did not change: got %v", err)
	}
}

// Many tokens of one list at once cause one fetch, and the lists in memory are bounded.
func TestStatusListsAreBounded(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	uri := i.list("1", []byte{0}, nil)
	if err := v.check(t, i.token(nil)); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 64 {
		token := i.token(at(uri, 0))
		group.Go(func() {
			if err := v.check(t, token); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := i.count("/status/1"); n != 1 {
		t.Errorf("64 tokens caused %d fetches", n)
	}
	for n := range maxLists + 10 {
		_ = v.check(t, i.token(at(uri+strings.Repeat("x", n+1), 0)))
	}
	if len(v.lists.byURI) > maxLists {
		t.Errorf("%d lists are in memory", len(v.lists.byURI))
	}
}

// A list that can't be fetched is tried once a second, not once a token.
func TestMissingStatusListIsNotHammered(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	token := i.token(at(i.url+"/status/1", 0))
	for range 20 {
		if err := v.check(t, token); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
	}
	i.pass(time.Second)
	_ = v.check(t, token)
	if n := i.count("/status/1"); n != 2 {
		t.Errorf("21 tokens in two seconds caused %d fetches, want 2", n)
	}
}

// An invalid token does not cause the fetch of its list (section 8.3).
func TestInvalidTokenFetchesNoList(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	v := i.verifier(nil)
	uri := i.list("1", []byte{0}, nil)
	for _, change := range []object{{"exp": 1}, {"aud": "https://evil.test"}, {"cnf": object{"jkt": "x"}}} {
		if err := v.check(t, i.token(changed(at(uri, 0), change))); !errors.Is(err, ErrInvalidToken) {
			t.Errorf("%v: got %v", change, err)
		}
	}
	if n := i.count("/status/1"); n != 0 {
		t.Errorf("the list was fetched %d times", n)
	}
}
