package token

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"math/big"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

func TestSignatureIsDeterministicAndVerifies(t *testing.T) {
	t.Parallel()
	// With this key, the signatures are the same in every run.
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	key := &signingKey{method: jwt.SigningMethodES256, signer: private}
	lengths := map[int]bool{}
	for i := range 1000 { // some r and s have leading zeros, which DER omits
		input := fmt.Appendf(nil, "input %d", i)
		signature, err := key.sign(input)
		if err != nil {
			t.Fatal(err)
		}
		if err := jwt.SigningMethodES256.Verify(string(input), signature, private.Public()); err != nil {
			t.Fatalf("input %d: golang-jwt refuses the signature: %v", i, err)
		}
		if again, _ := key.sign(input); !bytes.Equal(again, signature) {
			t.Fatalf("input %d: signed twice, got two signatures", i)
		}
		lengths[len(bytes.TrimLeft(signature, "\x00"))] = true
	}
	if len(lengths) < 2 {
		t.Error("no signature began with a zero byte: the test proves nothing about them")
	}
}

// FuzzFromDER compares fromDER with encoding/asn1, which accepts the same signatures.
func FuzzFromDER(f *testing.F) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	digest := sha256.Sum256([]byte("input"))
	der, err := ecdsa.SignASN1(rand.Reader, private, digest[:])
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{der, der[:len(der)-1], append(der, 0), nil, {0x30, 0}, {0x30, 6, 2, 1, 1, 2, 1, 0x80}, {0x30, 6, 2, 1, 1, 2, 1, 0x7f}, {0x30, 8, 2, 2, 0, 0x80, 2, 2, 0, 0x81}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		var want struct{ R, S *big.Int }
		rest, err := asn1.Unmarshal(der, &want)
		valid := err == nil && len(rest) == 0 && want.R.Sign() > 0 && want.S.Sign() > 0 && want.R.BitLen() <= 256 && want.S.BitLen() <= 256
		if valid { // encoding/asn1 ignores further elements of the sequence
			again, err := asn1.Marshal(want)
			valid = err == nil && bytes.Equal(again, der)
		}
		got, err := fromDER(der)
		if err != nil {
			if valid {
				t.Fatalf("%x: got %v, want a signature", der, err)
			}
			return
		}
		if !valid {
			t.Fatalf("%x: got a signature, want an error", der)
		}
		r, s := make([]byte, 32), make([]byte, 32)
		if !bytes.Equal(got, append(want.R.FillBytes(r), want.S.FillBytes(s)...)) {
			t.Errorf("%x: got %x", der, got)
		}
	})
}
