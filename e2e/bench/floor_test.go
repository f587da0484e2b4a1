package bench

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The durable floor is the least that a server can do and still answer with a
// recorded token: it verifies one ES256 JWT, signs one, appends one line to a
// file, and answers when a group-committed fdatasync covers the line. It has no
// policy, no leases, no tree and no limits.

// floorMain is the floor's process: its arguments are address, certificate,
// key, the callers' public key and the file to append to.
func floorMain(args []string) error {
	public, err := readPublic(args[3])
	if err != nil {
		return err
	}
	log, err := os.OpenFile(args[4], os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	f := &floor{public: public, own: own, log: &groupLog{file: log}}
	server := &http.Server{Addr: args[0], Handler: http.HandlerFunc(f.serve), ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServeTLS(args[1], args[2])
}

func readPublic(path string) (*ecdsa.PublicKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), text)
}

type floor struct {
	public *ecdsa.PublicKey
	own    *ecdsa.PrivateKey
	log    interface{ append(line []byte) error }
}

func (f *floor) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		return // a probe for readiness
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err == nil {
		var form url.Values
		if form, err = url.ParseQuery(string(body)); err == nil {
			err = f.answer(w, form.Get("subject_token"))
		}
	}
	if err != nil {
		http.Error(w, "refused", http.StatusBadRequest)
	}
}

func (f *floor) answer(w http.ResponseWriter, subject string) error {
	sub, err := verifyES256(f.public, subject)
	if err != nil {
		return err
	}
	now := time.Now()
	claims := fmt.Sprintf(`{"iss":"https://floor.test","sub":%q,"aud":"https://tickets.acme.test","scope":"tickets:read","iat":%d,"exp":%d,"jti":"%x"}`, sub, now.Unix(), now.Unix()+600, now.UnixNano())
	token, err := signES256(f.own, `{"alg":"ES256","typ":"at+jwt","kid":"1"}`, claims)
	if err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(token))
	if err := f.log.append(fmt.Appendf(nil, "%s %s %x\n", now.Format(time.RFC3339Nano), sub, hash)); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":600,"scope":"tickets:read"}`, token)
	return err
}

func verifyES256(public *ecdsa.PublicKey, token string) (sub string, err error) {
	input, signature, ok := cutLast(token, ".")
	if !ok {
		return "", errors.New("no JWT")
	}
	sig, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil || len(sig) != 64 {
		return "", errors.New("no signature")
	}
	digest := sha256.Sum256([]byte(input))
	if !ecdsa.Verify(public, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return "", errors.New("a wrong signature")
	}
	_, payload, _ := strings.Cut(input, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return "", err
	}
	var claims struct {
		Sub string `json:"sub"`
		Exp int64  `json:"exp"`
	}
	if err := json.Unmarshal(text, &claims); err != nil || claims.Exp < time.Now().Unix() {
		return "", errors.New("expired")
	}
	return claims.Sub, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+len(sep):], true
}

func signES256(key *ecdsa.PrivateKey, header, claims string) (string, error) {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// A groupLog appends lines. Concurrent callers share one fdatasync.
type groupLog struct {
	file    *os.File
	mu      sync.Mutex
	pending []byte
	group   *logGroup
	leading bool
}

type logGroup struct {
	done chan struct{}
	err  error
}

func (l *groupLog) append(line []byte) error {
	l.mu.Lock()
	l.pending = append(l.pending, line...)
	if l.group == nil {
		l.group = &logGroup{done: make(chan struct{})}
	}
	mine := l.group
	if l.leading {
		l.mu.Unlock()
		<-mine.done
		return mine.err
	}
	l.leading = true
	for l.group != nil {
		group, lines := l.group, l.pending
		l.group, l.pending = nil, nil
		l.mu.Unlock()
		w := bufio.NewWriterSize(l.file, len(lines)+1)
		_, err := w.Write(lines)
		group.err = errors.Join(err, w.Flush(), unix.Fdatasync(int(l.file.Fd())))
		close(group.done)
		l.mu.Lock()
	}
	l.leading = false
	l.mu.Unlock()
	<-mine.done
	return mine.err
}
