package audit

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
)

// FuzzCheckpoint reads arbitrary notes. A checkpoint has one spelling, except for
// extension lines, and no note verifies that the key did not sign.
func FuzzCheckpoint(f *testing.F) {
	secret, public, err := NewLogKey("broker.test/log/abcdefgh")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := NewSigner(secret)
	if err != nil {
		f.Fatal(err)
	}
	c := Checkpoint{Origin: "broker.test/log/abcdefgh", Size: 7, Root: Digest{1}}
	signed, err := signer.Sign(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add([]byte(c.String()))
	f.Add([]byte("a\n07\n" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseCheckpoint(string(b)); err == nil && !bytes.HasPrefix(b, []byte(got.String())) {
			t.Fatalf("%q: got %+v, which is written %q", b, got, got)
		}
		if got, err := OpenCheckpoint(b, public); err == nil && got != c {
			t.Fatalf("%q: got %+v, which was not signed", b, got)
		}
	})
}

// FuzzOpenings reads arbitrary openings. They have one spelling of each salt.
func FuzzOpenings(f *testing.F) {
	f.Add([]byte(`{"justification":{"salt":"000102030405060708090a0b0c0d0e0f","text":"why"}}`))
	f.Add([]byte(`{"justification":{"salt":"000102030405060708090A0B0C0D0E0F","text":"why"}}`))
	f.Add([]byte(`{"a":{"salt":"x"},"a":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		openings, err := DecodeOpenings(b)
		if err != nil {
			return
		}
		again, err := DecodeOpenings(appendOpenings(nil, openings))
		if err != nil || len(again) != len(openings) {
			t.Fatalf("%q: got %v, read again as %v, %v", b, openings, again, err)
		}
		for field, o := range openings {
			if again[field] != o {
				t.Fatalf("%q: %q is read again as %v", b, field, again[field])
			}
		}
	})
}

// A digest, a salt and a root have one spelling each.
func TestOneSpelling(t *testing.T) {
	lower := strings.Repeat("ab", 32)
	var d Digest
	for _, text := range []string{strings.ToUpper(lower), "0x" + lower[2:], lower[1:], lower + " ", "sha256:" + lower, strings.Repeat("g", 64), "+" + lower[1:]} {
		if d.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q was read as a digest", text)
		}
	}
	salt := "000102030405060708090a0b0c0d0e0f"
	good := `{"a":{"salt":"` + salt + `","text":"x"}}`
	if _, err := DecodeOpenings([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{strings.Replace(good, salt, strings.ToUpper(salt), 1), good + "x", strings.Replace(good, `"text"`, `"text":"y","text"`, 1), strings.Replace(good, `"x"`, `"\ud800"`, 1), "\ufeff" + good} {
		if got, err := DecodeOpenings([]byte(text)); err == nil {
			t.Errorf("%q: got %v", text, got)
		}
	}
	c := Checkpoint{Origin: "a", Size: 7, Root: Digest{1}}
	for _, change := range [][2]string{{"7", "07"}, {"7", "+7"}, {"7", "7.0"}, {"7", " 7"}, {"7", "7\r"}, {"AQAA", "AQ\rAA"}, {"A=", "B="}} {
		text := strings.Replace(c.String(), change[0], change[1], 1)
		if got, err := parseCheckpoint(text); text == c.String() || err == nil {
			t.Errorf("%q: got %v", text, got)
		}
	}
}
