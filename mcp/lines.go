package mcp

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// lines is the transport of a pair of streams, one message in each line. Unlike the SDK's
// own, it answers a line that is no message with an error and reads on, and when the input
// ends, it sends the answers of the calls that are running. Its bounds are stricter.
type lines struct {
	in  io.ReadCloser
	out io.WriteCloser
}

// lastAnswers is how long calls may run after the input has ended.
const lastAnswers = 5 * time.Second

// Connect starts to read.
func (l lines) Connect(context.Context) (sdk.Connection, error) {
	c := &lineConn{lines: l, incoming: make(chan []byte), ended: make(chan struct{}), closed: make(chan struct{})}
	go c.read() // until the input ends: a read cannot be canceled
	return c, nil
}

type lineConn struct {
	lines
	incoming chan []byte   // a nil line is too long
	ended    chan struct{} // the input has ended
	readErr  error         // valid once ended is closed
	closed   chan struct{}
	close    sync.Once

	mu      sync.Mutex // guards running, and keeps lines whole
	running int        // calls without an answer
}

func (c *lineConn) SessionID() string { return "" }

func (c *lineConn) read() {
	defer close(c.ended)
	r := bufio.NewReaderSize(c.in, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = r.ReadSlice('\n')
			}
			line = nil
		case len(line) == 0:
		default:
			line = append([]byte{}, line...)
		}
		if err == nil || len(line) > 0 {
			select {
			case c.incoming <- line:
			case <-c.closed:
				return
			}
		}
		if err != nil {
			c.readErr = err
			return
		}
	}
}

// Read returns the next message.
func (c *lineConn) Read(ctx context.Context) (jsonrpc.Message, error) {
	for {
		select {
		case line := <-c.incoming:
			if msg := c.message(line); msg != nil {
				return msg, nil
			}
		case <-c.ended:
			c.drain(ctx)
			return nil, c.readErr
		case <-c.closed:
			return nil, io.EOF
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// message decodes a line. It answers a line that is no message, and returns nil.
func (c *lineConn) message(line []byte) jsonrpc.Message {
	if line == nil {
		c.refuse(jsonrpc.CodeInvalidRequest, "the message is too long")
		return nil
	}
	if len(line) <= 2 && string(line) != "{}" { // an empty line
		return nil
	}
	msg, err := jsonrpc.DecodeMessage(line)
	if err != nil {
		c.refuse(jsonrpc.CodeParseError, "the line is not a JSON-RPC message")
		return nil
	}
	if req, ok := msg.(*jsonrpc.Request); ok && req.IsCall() {
		c.mu.Lock()
		c.running++
		c.mu.Unlock()
	}
	return msg
}

// refuse sends an error that belongs to no call.
func (c *lineConn) refuse(code int64, message string) {
	// The SDK's encoder leaves the id out, which JSON-RPC 2.0, section 5, wants as null.
	text := `{"jsonrpc":"2.0","id":null,"error":{"code":` + strconv.FormatInt(code, 10) + `,"message":"` + message + `"}}` + "\n"
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = io.WriteString(c.out, text) // a closed output ends the connection with the next answer
}

// drain waits until all running calls are answered.
func (c *lineConn) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastAnswers)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c.mu.Lock()
		done := c.running == 0
		c.mu.Unlock()
		if done {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-c.closed:
			return
		case <-tick.C:
		}
	}
}

// Write sends a message.
func (c *lineConn) Write(_ context.Context, msg jsonrpc.Message) error {
	text, err := jsonrpc.EncodeMessage(msg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := msg.(*jsonrpc.Response); ok {
		c.running--
	}
	_, err = c.out.Write(append(text, '\n'))
	return err
}

// Close closes both streams, which may be the same one.
func (c *lineConn) Close() error {
	c.close.Do(func() {
		close(c.closed)
		_, _ = c.in.Close(), c.out.Close()
	})
	return nil
}
