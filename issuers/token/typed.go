package token

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// SignTyped is Sign with the current key, whatever its algorithm, for a token of a type of
// its own (RFC 8725, section 3.11).
func (k *Keys) SignTyped(typ string, claims map[string]any, now time.Time) (string, error) {
	key := k.current(now)
	if key == nil {
		return "", fmt.Errorf("no signing key is in use yet")
	}
	t := jwt.NewWithClaims(key.method, jwt.MapClaims(claims))
	t.Header["kid"], t.Header["typ"] = key.kid, typ
	signed, err := t.SignedString(key.signer)
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return signed, nil
}

// VerifyTyped decodes the claims of a token of a type that one of the published keys
// signed. The caller checks the claims, also the times.
func (k *Keys) VerifyTyped(typ, token string, now time.Time, claims any) error {
	if len(token) > maxInspected {
		return errNotOurs
	}
	keyOf := func(t *jwt.Token) (any, error) {
		for _, key := range k.published(now) {
			if t.Header["kid"] == key.kid && t.Method.Alg() == key.row.Algorithm && t.Header["typ"] == typ {
				return key.signer.Public(), nil
			}
		}
		return nil, errNoKey
	}
	parser := jwt.NewParser(jwt.WithoutClaimsValidation(), jwt.WithValidMethods([]string{"ES256", "RS256", "EdDSA"}))
	var raw jwt.MapClaims
	if _, err := parser.ParseWithClaims(token, &raw, keyOf); err != nil {
		return fmt.Errorf("verifying a token: %w", err)
	}
	text, err := json.Marshal(raw)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, claims)
}
