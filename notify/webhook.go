package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/outbound"
)

// A WebhookConfig configures a webhook that is signed as Standard Webhooks 1.0
// specifies.
type WebhookConfig struct {
	Pages        string // URL of the broker's pages
	URL          string
	Secrets      [][]byte       // each one signs, so that receivers can change from one to another
	Roots        *x509.CertPool // nil: the system's
	AllowPrivate bool           // allow addresses that are not public, and http on loopback
}

type webhook struct {
	cfg    WebhookConfig
	client *http.Client
}

// Secret decodes a secret of Standard Webhooks: "whsec_" and the base64 of 24 to 64
// bytes.
func Secret(text string) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(text), "whsec_"))
	if err != nil || len(raw) < 24 || len(raw) > 64 {
		return nil, errors.New("a webhook secret is whsec_ followed by the base64 of 24 to 64 random bytes")
	}
	return raw, nil
}

// NewWebhook returns the notifier for a webhook.
func NewWebhook(c WebhookConfig) (Notifier, error) {
	if err := outbound.CheckURL(c.URL, c.AllowPrivate); err != nil {
		return nil, err
	}
	if len(c.Secrets) == 0 {
		return nil, errors.New("a webhook needs a secret for its signatures")
	}
	return &webhook{c, outbound.Client(c.Roots, c.AllowPrivate)}, nil
}

// Notify posts {type, timestamp, data}. The webhook-id is the id of the notice, and
// so the same for every attempt.
func (w *webhook) Notify(ctx context.Context, n *broker.Notice, r *broker.Request, _ []string, now time.Time) (string, error) {
	event, created, data := content(w.cfg.Pages, n, r, now)
	body, err := json.Marshal(map[string]any{"type": event, "timestamp": created, "data": data})
	if err != nil {
		return "", fmt.Errorf("encoding an event: %w", err)
	}
	req, err := http.NewRequest(http.MethodPost, w.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return "", errors.New("the URL is not valid")
	}
	id, at := n.ID.String(), strconv.FormatInt(now.Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "access-broker")
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", at)
	var signatures []string
	for _, secret := range w.cfg.Secrets {
		signatures = append(signatures, "v1,"+signature(secret, id, at, body))
	}
	req.Header.Set("webhook-signature", strings.Join(signatures, " "))
	_, err = send(ctx, w.client, req)
	return "", err
}

func signature(secret []byte, id, at string, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(id + "." + at + "."))
	mac.Write(body)
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
