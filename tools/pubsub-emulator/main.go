// A Pub/Sub server in memory, for tests and demonstrations: Google's own pstest behind a command line.
//
// With -clock its time can be moved ahead: POST /advance?seconds=61, so that a test need not wait for a deadline.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"cloud.google.com/go/pubsub/v2/pstest"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8085", "address to listen on")
	clock := flag.String("clock", "", "address of the clock's control; empty: none")
	flag.Parse()
	server := pstest.NewServerWithAddress(*addr)
	defer server.Close()
	if *clock != "" {
		var ahead atomic.Int64
		server.SetTimeNowFunc(func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
		http.HandleFunc("POST /advance", func(w http.ResponseWriter, r *http.Request) {
			seconds, err := strconv.ParseFloat(r.FormValue("seconds"), 64)
			if err != nil || seconds < 0 {
				http.Error(w, "seconds: a number, at least 0", http.StatusBadRequest)
				return
			}
			ahead.Add(int64(seconds * float64(time.Second)))
		})
		go func() { log.Fatal(http.ListenAndServe(*clock, nil)) }()
	}
	fmt.Println("listening on", server.Addr)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
}
