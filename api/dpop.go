package api

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// A ProofKey makes proofs that a client holds a key (DPoP, RFC 9449). Tokens that a Client
// with a ProofKey requests are bound to the key. It is safe for concurrent use.
type ProofKey struct {
	signer     crypto.Signer
	algorithm  string
	header     string // of proofs, encoded
	thumbprint string
	nonce      atomic.Pointer[string] // of the broker's last answer; nil: none yet
}

// NewProofKey returns a new key, which exists only in memory. It is an Ed25519 key: of the
// signatures that the broker accepts, it verifies those fastest.
func NewProofKey() (*ProofKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return proofKey(key)
}

// ParseProofKey parses a private key in PEM (PKCS #8): P-256, Ed25519, or RSA. The error
// does not repeat its input.
func ParseProofKey(text []byte) (*ProofKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, errors.New("not one private key in PEM (PKCS #8): make one with `openssl genpkey -algorithm ed25519`")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	clear(block.Bytes)
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("the private key is malformed")
	}
	return proofKey(signer)
}

// A proofJWK is a public key (RFC 7517). The members are in the order of RFC 7638.
type proofJWK struct {
	Curve    string `json:"crv,omitempty"`
	Exponent string `json:"e,omitempty"`
	Type     string `json:"kty"`
	Modulus  string `json:"n,omitempty"`
	X        string `json:"x,omitempty"`
	Y        string `json:"y,omitempty"`
}

func proofKey(signer crypto.Signer) (*ProofKey, error) {
	k := &ProofKey{signer: signer}
	var jwk proofJWK
	encode := base64.RawURLEncoding.EncodeToString
	switch public := signer.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil || public.Curve != elliptic.P256() {
			return nil, errors.New("a key on another curve than P-256")
		}
		k.algorithm, jwk = "ES256", proofJWK{Type: "EC", Curve: "P-256", X: encode(point[1:33]), Y: encode(point[33:])}
	case ed25519.PublicKey:
		k.algorithm, jwk = "Ed25519", proofJWK{Type: "OKP", Curve: "Ed25519", X: encode(public)}
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < 2048 || bits > 4096 {
			return nil, fmt.Errorf("an RSA key of %d bits, not 2048 to 4096", bits)
		}
		k.algorithm, jwk = "PS256", proofJWK{Type: "RSA", Exponent: encode(big.NewInt(int64(public.E)).Bytes()), Modulus: encode(public.N.Bytes())}
	default:
		return nil, errors.New("a key of an unknown type")
	}
	public, err := json.Marshal(jwk)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(public)
	k.thumbprint = encode(sum[:])
	k.header = encode(fmt.Appendf(nil, `{"typ":"dpop+jwt","alg":%q,"jwk":%s}`, k.algorithm, public))
	return k, nil
}

// Thumbprint returns the thumbprint of the key (RFC 7638), the cnf.jkt of its tokens.
func (k *ProofKey) Thumbprint() string { return k.thumbprint }

// Proof returns a proof for one call (RFC 9449, section 4.2). nonce is that of the server,
// and token is the access token that the call presents; both may be empty.
func (k *ProofKey) Proof(method, target, nonce, token string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", fmt.Errorf("reading the URL of a call: %w", err)
	}
	u.RawQuery, u.Fragment, u.RawFragment, u.ForceQuery = "", "", "", false
	claims := map[string]any{"jti": rand.Text(), "htm": method, "htu": u.String(), "iat": time.Now().Unix()}
	if nonce != "" {
		claims["nonce"] = nonce
	}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed := k.header + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := k.sign([]byte(signed))
	if err != nil {
		return "", fmt.Errorf("signing a DPoP proof: %w", err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func (k *ProofKey) sign(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	switch key := k.signer.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			return nil, err
		}
		signature := make([]byte, 64)
		r.FillBytes(signature[:32])
		s.FillBytes(signature[32:])
		return signature, nil
	case ed25519.PrivateKey:
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	return k.signer.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
}

// prove adds a proof to a call of the broker.
func (k *ProofKey) prove(req *http.Request) error {
	nonce := ""
	if last := k.nonce.Load(); last != nil {
		nonce = *last
	}
	proof, err := k.Proof(req.Method, req.URL.String(), nonce, "")
	if err == nil {
		req.Header.Set("DPoP", proof)
	}
	return err
}

// learn keeps the nonce of an answer for the next proof. It reports whether the call must be
// repeated with it.
func (k *ProofKey) learn(resp *http.Response, body []byte) (repeat bool) {
	nonce := resp.Header.Get("DPoP-Nonce")
	if nonce == "" || len(nonce) > 256 {
		return false
	}
	k.nonce.Store(&nonce)
	return resp.StatusCode/100 == 4 && readError(resp, body).Code == UseDPoPNonce
}

// send sends a request, with a proof if the client has a key and the endpoint accepts
// proofs. A call that lacks a current nonce was not handled, so it is repeated once.
func (c *Client) send(ctx context.Context, call call, key string) (*http.Response, []byte, error) {
	for attempt := 1; ; attempt++ {
		resp, body, err := c.sendOnce(ctx, call, key)
		if err != nil || c.ProofKey == nil || !call.bound {
			return resp, body, err
		}
		if !c.ProofKey.learn(resp, body) || attempt == 2 {
			return resp, body, nil
		}
	}
}

func (c *Client) sendOnce(ctx context.Context, call call, key string) (*http.Response, []byte, error) {
	req, err := c.request(ctx, call, key)
	if err == nil && c.ProofKey != nil && call.bound {
		err = c.ProofKey.prove(req)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("calling %s %s: %w", call.method, call.path, err)
	}
	client := http.Client{}
	if c.HTTP != nil {
		client = *c.HTTP
	}
	// A redirect would send the proof and the request to a host that the caller
	// did not name.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("calling the broker: %w", &lostError{err})
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return resp, nil, fmt.Errorf("reading the answer of %s: %w", call.path, &lostError{err})
	}
	return resp, body, nil
}
