package session

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"accessbroker.internal/broker"
)

// TokenPrefix begins every session token, so that secret scanners find leaked
// ones.
const TokenPrefix = "abs_"

// A Token authenticates a person's browser or terminal. Its type keeps it from
// being printed or logged by accident.
type Token struct{ text string }

// ParseToken reads a presented token. It returns false if the text is not one.
func ParseToken(text string) (Token, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimPrefix(text, TokenPrefix))
	return Token{text}, err == nil && len(raw) == sha256.Size && text == TokenPrefix+base64.RawURLEncoding.EncodeToString(raw)
}

func newToken() Token {
	raw := make([]byte, sha256.Size)
	_, _ = rand.Read(raw) // never fails
	return Token{TokenPrefix + base64.RawURLEncoding.EncodeToString(raw)}
}

// Reveal returns the text, for its holder only.
func (t Token) Reveal() string { return t.text }

// String hides the token.
func (Token) String() string { return "[session]" }

// GoString hides the token.
func (Token) GoString() string { return "[session]" }

// MarshalText hides the token.
func (Token) MarshalText() ([]byte, error) { return []byte("[session]"), nil }

func (t Token) key() broker.SessionKey { return sha256.Sum256([]byte(t.text)) }

// aead encrypts with a key that is derived from the token. The key is stored
// nowhere, so only the holder of the token can decrypt.
func (t Token) aead() (cipher.AEAD, error) {
	return broker.CipherFrom([]byte(t.text), nil, "accessbroker/session-seal/v1")
}

// seal encrypts the provider's tokens.
func (t Token) seal(secret []byte) ([]byte, error) {
	if len(secret) == 0 {
		return nil, nil
	}
	aead, err := t.aead()
	if err != nil {
		return nil, fmt.Errorf("sealing a session: %w", err)
	}
	return aead.Seal(nil, nil, secret, nil), nil
}

// ProviderTokens decrypts the provider's tokens of the token's session.
func (t Token) ProviderTokens(s *broker.Session) ([]byte, error) {
	if len(s.Sealed) == 0 {
		return nil, nil
	}
	aead, err := t.aead()
	if err != nil {
		return nil, fmt.Errorf("unsealing a session: %w", err)
	}
	return aead.Open(nil, nil, s.Sealed, nil)
}
