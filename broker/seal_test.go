package broker

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"
)

func newSealKey() []byte {
	key := make([]byte, SealKeySize)
	_, _ = rand.Read(key)
	return key
}

func mustSealer(t *testing.T, keys ...[]byte) *Sealer {
	t.Helper()
	s, err := NewSealer(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealRotation(t *testing.T) {
	older, newer := newSealKey(), newSealKey()
	before := mustSealer(t, older)
	envelope := before.Seal("token", "1", []byte("secret"))
	if bytes.Contains(envelope, []byte("secret")) {
		t.Fatal("the envelope contains the plaintext")
	}
	both := mustSealer(t, newer, older)
	if got, err := both.Open("token", "1", envelope); err != nil || string(got) != "secret" {
		t.Fatalf("with the second key: got %q, %v, want secret", got, err)
	}
	if both.Current(envelope) || !both.Current(both.Seal("token", "1", nil)) {
		t.Error("Current reports the wrong key")
	}
	_, err := mustSealer(t, newer).Open("token", "1", envelope)
	if err == nil || !strings.Contains(err.Error(), before.IDs()[0]) {
		t.Errorf("without the key: got %v, want an error with the key ID %s", err, before.IDs()[0])
	}
}

func TestSealIsBoundToItsPlace(t *testing.T) {
	s := mustSealer(t, newSealKey())
	envelope := s.Seal("token", "1", []byte("secret"))
	for _, place := range [][2]string{{"token", "2"}, {"log", "1"}, {"token\" \"1", ""}, {"", "token 1"}} {
		if _, err := s.Open(place[0], place[1], envelope); err == nil {
			t.Errorf("opening at %q: got no error", place)
		}
	}
	for i := range envelope {
		changed := bytes.Clone(envelope)
		changed[i] ^= 1
		if _, err := s.Open("token", "1", changed); err == nil {
			t.Fatalf("opening with byte %d changed: got no error", i)
		}
		if _, err := s.Open("token", "1", envelope[:i]); err == nil {
			t.Fatalf("opening when cut to %d bytes: got no error", i)
		}
	}
}

func TestParseSealKey(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(newSealKey())
	if _, err := ParseSealKey(good + "\n"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "short", good[:40], good + "AAAA", strings.Repeat("!", 44)} {
		if _, err := ParseSealKey(bad); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: got %v, want an error that does not show the key", bad, err)
		}
	}
}
