package egresstest

import (
	"bufio"
	"crypto/sha1" // RFC 6455, section 4.2.2
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
)

const acceptGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// serveSocket opens a WebSocket, repeats the credential in messages of many frames with
// pings between them, and closes.
func serveSocket(w http.ResponseWriter, r *http.Request, secret string, draw *rand.Rand) {
	conn, both, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "no WebSocket over this protocol", http.StatusNotImplemented)
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + acceptGUID))
	fmt.Fprintf(both, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	for range 1 + draw.IntN(5) {
		message := []byte(filler(draw) + echo(secret, draw) + filler(draw))
		opcode := byte(1 + draw.IntN(2))
		for {
			n := min(len(message), draw.IntN(200))
			final := n == len(message)
			writeFrame(both.Writer, opcode, message[:n], final)
			if final {
				break
			}
			message, opcode = message[n:], 0
			if draw.IntN(4) == 0 {
				writeFrame(both.Writer, 9, []byte(secret[:min(len(secret), 100)]), true)
			}
		}
	}
	writeFrame(both.Writer, 8, append([]byte{3, 232}, secret[:min(len(secret), 100)]...), true)
	_ = both.Flush()
}

func writeFrame(w *bufio.Writer, opcode byte, payload []byte, final bool) {
	if final {
		opcode |= 0x80
	}
	_ = w.WriteByte(opcode)
	if len(payload) < 126 {
		_ = w.WriteByte(byte(len(payload)))
	} else {
		_ = w.WriteByte(126)
		_, _ = w.Write(binary.BigEndian.AppendUint16(nil, uint16(len(payload))))
	}
	_, _ = w.Write(payload)
}
