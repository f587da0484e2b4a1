package broker

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// A Sealer encrypts secrets for the database with AES-256-GCM (NIST SP
// 800-38D). The first key seals, and all keys open. To rotate, put the new key
// first, reseal, and remove the old key. It is safe for concurrent use.
type Sealer struct{ keys []sealKey }

type sealKey struct {
	id    [sealIDSize]byte
	aead  cipher.AEAD
	codes cipher.AEAD // see Code
}

// SealKeySize is the size of a seal key in bytes.
const SealKeySize = 32

const (
	sealVersion = 1
	sealIDSize  = 8
	sealNonce   = 12
	sealHeader  = 1 + sealIDSize + sealNonce
	sealDomain  = "accessbroker/seal/v1\n"
)

// ParseSealKey parses a key: 32 bytes in base64. The error does not repeat its
// input.
func ParseSealKey(text string) ([]byte, error) {
	key, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(text))
	if err != nil || len(key) != SealKeySize {
		return nil, errors.New("a seal key is 32 random bytes in base64: make one with `head -c 32 /dev/urandom | base64`")
	}
	return key, nil
}

// NewSealer returns a Sealer with one or more keys of 32 bytes.
func NewSealer(keys ...[]byte) (*Sealer, error) {
	if len(keys) == 0 {
		return nil, errors.New("sealing needs at least one key")
	}
	s := &Sealer{}
	for i, key := range keys {
		if len(key) != SealKeySize {
			return nil, fmt.Errorf("seal key %d has %d bytes, not %d", i+1, len(key), SealKeySize)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("reading seal key %d: %w", i+1, err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, fmt.Errorf("reading seal key %d: %w", i+1, err)
		}
		digest := sha256.Sum256(append([]byte("accessbroker/seal-key-id/v1\n"), key...))
		codes, err := CipherFrom(key, nil, codePurpose)
		if err != nil {
			return nil, fmt.Errorf("deriving from seal key %d: %w", i+1, err)
		}
		s.keys = append(s.keys, sealKey{[sealIDSize]byte(digest[:]), aead, codes})
	}
	return s, nil
}

// CipherFrom returns AES-256-GCM with random nonces. Its key is derived from a secret for
// one purpose (HKDF, RFC 5869), and only the holder of the secret can derive it again.
func CipherFrom(secret, salt []byte, purpose string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, salt, purpose, SealKeySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// associated returns the associated data of an envelope: its key and its place,
// so that an envelope does not open in another row.
func associated(id [sealIDSize]byte, purpose, name string) []byte {
	return fmt.Appendf(nil, "%s%x\n%q %q", sealDomain, id, purpose, name)
}

// Seal encrypts a secret for the row of that purpose and name. With random
// 96-bit nonces a key may seal 2^32 times; the broker seals a few times a day.
func (s *Sealer) Seal(purpose, name string, secret []byte) []byte {
	key := s.keys[0]
	out := make([]byte, sealHeader, sealHeader+len(secret)+key.aead.Overhead())
	out[0] = sealVersion
	copy(out[1:], key.id[:])
	nonce := out[1+sealIDSize : sealHeader]
	_, _ = rand.Read(nonce) // never fails
	return key.aead.Seal(out, nonce, secret, associated(key.id, purpose, name))
}

// Open decrypts an envelope that Seal made for the same purpose and name.
func (s *Sealer) Open(purpose, name string, envelope []byte) ([]byte, error) {
	if len(envelope) < sealHeader || envelope[0] != sealVersion {
		return nil, fmt.Errorf("unsealing %s %q: unknown envelope version", purpose, name)
	}
	id := [sealIDSize]byte(envelope[1:])
	for _, key := range s.keys {
		if key.id != id {
			continue
		}
		secret, err := key.aead.Open(nil, envelope[1+sealIDSize:sealHeader], envelope[sealHeader:], associated(id, purpose, name))
		if err != nil {
			return nil, fmt.Errorf("unsealing %s %q: it was changed, or sealed for another row", purpose, name)
		}
		return secret, nil
	}
	return nil, fmt.Errorf("unsealing %s %q: it was sealed by the key %s, which is not among seal_keys (%s)", purpose, name, hex.EncodeToString(id[:]), strings.Join(s.IDs(), ", "))
}

// IDs returns the ids of the keys, the sealing one first. An id reveals nothing
// about its key.
func (s *Sealer) IDs() []string {
	ids := make([]string, len(s.keys))
	for i, key := range s.keys {
		ids[i] = hex.EncodeToString(key.id[:])
	}
	return ids
}

// Current reports whether the first key sealed the envelope.
func (s *Sealer) Current(envelope []byte) bool {
	return len(envelope) >= sealHeader && [sealIDSize]byte(envelope[1:]) == s.keys[0].id
}
