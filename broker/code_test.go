package broker

import (
	"bytes"
	"encoding/base64"
	"testing"
)

// A code opens with its key and for its purpose only, and every change of it is noticed.
func TestCodes(t *testing.T) {
	keys := [][]byte{bytes.Repeat([]byte{1}, SealKeySize), bytes.Repeat([]byte{2}, SealKeySize), bytes.Repeat([]byte{3}, SealKeySize)}
	seal := func(of ...int) *Sealer {
		var chosen [][]byte
		for _, i := range of {
			chosen = append(chosen, keys[i])
		}
		s, err := NewSealer(chosen...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	content := []byte("the id of a request")
	code := seal(0, 1).Code("waiting", content)
	for name, s := range map[string]*Sealer{"the same": seal(0, 1), "first key": seal(0), "rotated": seal(2, 0)} {
		if got, ok := s.ReadCode("waiting", code); !ok || !bytes.Equal(got, content) {
			t.Errorf("%s: got %q, %t, want the content", name, got, ok)
		}
	}
	if seal(0).Code("waiting", content) == code {
		t.Error("got the same code twice")
	}
	if raw, err := base64.RawURLEncoding.DecodeString(code); err != nil || bytes.Contains(raw, content[:4]) {
		t.Errorf("the code shows its content: %q, %v", raw, err)
	}
	for name, s := range map[string]*Sealer{"another key": seal(1), "other keys": seal(1, 2)} {
		if _, ok := s.ReadCode("waiting", code); ok {
			t.Errorf("%s opened the code", name)
		}
	}
	for _, purpose := range []string{"", "wait", "waiting ", "waitingt"} {
		if _, ok := seal(0).ReadCode(purpose, code); ok {
			t.Errorf("the code opened for %q", purpose)
		}
	}
	for i := range code {
		for _, c := range []byte{'A', 'z', '.', '='} {
			changed := code[:i] + string(c) + code[i+1:]
			if _, ok := seal(0).ReadCode("waiting", changed); ok && changed != code {
				t.Fatalf("the code opened with %q at %d", c, i)
			}
		}
		if _, ok := seal(0).ReadCode("waiting", code[:i]); ok {
			t.Fatalf("the code opened with %d characters", i)
		}
	}
}
